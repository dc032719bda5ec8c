"""Measures of what a decoder writes: rows of held-out text in, the named numbers of continuations of their beginnings out.

The prompts are the beginnings of the rows, what people wrote behind them is the measure's other side, so both texts have
the same prompts, length and places. One number: 32, the tokens of a prompt, or a quarter of a short context.
Choice not taken: prompts of our own; what is said of a text by its model depends on how it begins.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gpt2_lightning.data.chance import keyed_permutation
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import DataError
from gpt2_lightning.generation.sampler import Candidates, entropy
from gpt2_lightning.generation.text import NoText, continue_starts
from gpt2_lightning.loss import token_losses
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.text_metrics import text_metrics

__all__ = ["choose_rows", "measure_generation"]

PROMPT = 32


def choose_rows(parts: list[np.ndarray], n: int, seed: int) -> Int[Tensor, "N T"]:
    """``n`` rows of whole text, or all where there are fewer, drawn from those of all corpora; always the same for a seed.

    Raises DataError where rows are asked for and none is whole.
    """
    rows = np.concatenate([part[(part >= 0).all(1)] for part in parts]) if n else parts[0][:0]
    if n and not len(rows):
        rule = "no validation row is text from end to end"
        raise DataError("text to continue", key="samples.measure", value=n, rule=rule, remedy="Set samples.measure=0")
    return torch.from_numpy(rows[keyed_permutation(len(rows), seed)[:n]].astype(np.int64))


@torch.inference_mode()
def measure_generation(
    decoder: Decoder, rows: Int[Tensor, "N T"], sampler: SamplerConfig, max_new_tokens: int, seed: int, batch_size: int = 8
) -> dict[str, float]:
    """``generation/MEASURE`` of continuations of the rows' beginnings, and ``generation/human/MEASURE`` of what follows there.

    Also the entropy in nats of the next-token distribution on the way, before the sampler and after it. Texts do not end
    early: each has ``max_new_tokens``, or as many as the rows have behind the prompt.
    """
    prompt = min(PROMPT, rows.shape[1] // 4)
    human = rows[:, prompt : prompt + max_new_tokens]
    prompts = rows[:, :prompt].tolist()
    entropies: list[Tensor] = []

    def observe(logits: Tensor, found: Candidates) -> None:
        entropies.append(torch.stack(entropy(logits, found, sampler)).mean(1))

    asked = GenerateConfig(max_new_tokens=human.shape[1], seed=seed, batch_size=batch_size)
    made = continue_starts(decoder, NoText(), prompts, asked, sampler, observe=observe)
    texts = [best.tokens for best, *_ in made]
    device = decoder.wte.weight.device
    written = torch.cat([rows[:, :prompt], torch.tensor(texts)], 1).to(device)
    nats, human_nats = (
        continuation_nats(decoder, r, prompt, batch_size) for r in (written, rows[:, : written.shape[1]].to(device))
    )
    found = text_metrics(texts, nats, human_nats)
    found |= {name.replace("/", "/human/"): value for name, value in text_metrics(human.tolist(), human_nats).items()}
    if entropies:
        before, after = torch.stack(entropies).mean(0).tolist()
        found |= {"generation/entropy": before, "generation/sampled_entropy": after}
    return found


def continuation_nats(decoder: Decoder, rows: Int[Tensor, "N T"], prompt: int, batch_size: int) -> float:
    """Mean cross-entropy of the tokens behind the prompt, at temperature 1 over the whole vocabulary."""
    was_training = decoder.training
    decoder.eval()
    nats = [
        token_losses(decoder.hidden(part[:, :-1])[:, prompt - 1 :], decoder.wte.weight, part[:, prompt:])[0]
        for part in rows.split(batch_size)
    ]
    decoder.train(was_training)
    return float(torch.cat(nats).double().mean())
