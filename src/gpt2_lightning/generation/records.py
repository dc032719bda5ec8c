"""A decoder as tasks see it: records in; what their Y costs, how likely words are, and what the decoder writes instead out.

Records are read as in training: cut where they are longer than a row, each in a row of its own.
One number: 32, the rows side by side. Choice not taken: packed rows, which give the same numbers, since the decoder's document
mask sees to it, and have to be told apart.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_lightning.data.lanes import Passage
from gpt2_lightning.data.record import question_tokens, record_passage
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.generation.text import continue_starts
from gpt2_lightning.loss import IGNORED, token_losses
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.tasks.task import Record, question, with_answer

__all__ = ["RecordModel"]

ROWS = 32


class RecordModel:
    """What a task may ask of a decoder; ``cut`` is the end that a too long X loses, ``seed`` that of drawn texts."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, cut: str, seed: int) -> None:
        self.decoder, self.tokenizer, self.cut, self.seed = decoder, tokenizer, cut, seed

    @torch.no_grad()
    def nats(self, records: Sequence[Record]) -> list[tuple[float, int]]:
        """-log P(Y | X) of each record, and how many tokens that is of."""
        found: list[tuple[float, int]] = [(0.0, 0)] * len(records)
        for places, inputs, targets in self.rows(records):
            losses, _ = token_losses(self.decoder.hidden(inputs), self.decoder.wte.weight, targets)
            sums = losses.view(targets.shape).double().sum(1).tolist()
            for place, nats, n in zip(places, sums, (targets != IGNORED).sum(1).tolist(), strict=True):
                found[place] = nats, n
        return found

    @torch.no_grad()
    def next_word(self, records: Sequence[Record], words: Sequence[str]) -> list[list[float]]:
        """For each record the log-probabilities of the words' first tokens where its last Y begins; raises ConfigError.

        What all words begin with is read before, such as a blank where tokens are bytes.
        """
        alike, tokens = self.first_difference(words)
        asked = [with_answer(record, words[0]) for record in records]
        found: list[list[float]] = [[]] * len(records)
        for places, inputs, targets in self.rows(asked):
            at = (targets != IGNORED).int().argmax(1) + alike
            hidden = self.decoder.hidden(inputs)[torch.arange(len(places), device=inputs.device), at]
            logs = self.decoder.head(hidden).float().log_softmax(-1)[:, tokens].tolist()
            for place, row in zip(places, logs, strict=True):
                found[place] = row
        return found

    def first_difference(self, words: Sequence[str]) -> tuple[int, list[int]]:
        """How many tokens all words begin with, and each one's next; raises ConfigError where those do not differ."""
        encoded = [self.tokenizer.encode(word).tolist() for word in words]
        alike = 0
        while len(words) > 1 and len({tuple(tokens[: alike + 1]) for tokens in encoded}) == 1:
            alike += 1
        tokens = [word[alike] if len(word) > alike else self.tokenizer.end_of_text for word in encoded]
        if len(set(tokens)) < len(tokens):
            rule = f"needs labels that differ in their first tokens, and they are{','.join(words)}"
            raise ConfigError("head", key="task.head", value="last_token", rule=rule, remedy="Set task.head=likelihood")
        return alike, tokens

    def write(
        self, records: Sequence[Record], max_new_tokens: int, beams: int = 1, sample: bool = False, stop: Sequence[str] = ()
    ) -> list[str]:
        """What stands in place of each record's last Y: drawn by top-k, found by beam search, or greedy."""
        room = max(1, self.decoder.config.block_size - max_new_tokens)
        starts = [question_tokens(question(record), self.tokenizer, room, self.cut) for record in records]
        asked = GenerateConfig(max_new_tokens=max_new_tokens, seed=self.seed, stop=list(stop), batch_size=ROWS)
        sampler = SamplerConfig() if sample else SamplerConfig(beams=beams) if beams > 1 else SamplerConfig(k=1)
        made = continue_starts(self.decoder, self.tokenizer, starts, asked, sampler)
        return [group[0].text for group in made]

    def rows(self, records: Sequence[Record]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """The places of some records of about one length, their inputs and targets, a row each; the decoder does not train."""
        passages = [record_passage(r, self.tokenizer, self.decoder.config.block_size, self.cut) for r in records]
        order = sorted(range(len(records)), key=lambda i: len(passages[i].tokens))
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            for i in range(0, len(order), ROWS):
                places = order[i : i + ROWS]
                yield places, *self.batch([passages[place] for place in places])
        finally:
            self.decoder.train(was_training)

    def batch(self, passages: list[Passage]) -> tuple[Tensor, Tensor]:
        """Inputs, behind end-of-text as the first record of a row is, and targets; padded to the longest."""
        end, size, device = self.tokenizer.end_of_text, self.decoder.config.block_size, self.decoder.wte.weight.device
        inputs = [torch.from_numpy(np.append(end, p.tokens[:-1])[:size]) for p in passages]
        targets = [torch.from_numpy(p.labels[:size]).long() for p in passages if p.labels is not None]
        return (
            pad_sequence(inputs, batch_first=True, padding_value=end).to(device),
            pad_sequence(targets, batch_first=True, padding_value=IGNORED).to(device),
        )
