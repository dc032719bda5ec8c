"""The engine: prompts as tokens in, each one's continuation out, a token at a time from the cache.

In: prompts of any lengths, a sampler, a key of chance for each. Out: continuations, each the same whatever the batch.
One number: 1, the tokens by which the window moves when the context is full, as if the last ``block_size`` tokens were read
anew for every token; they are, for positions are learned and a cached key cannot move. ``slide_by`` trades that for speed.
Choice not taken: rows of one length, or padding on the right; with padding on the left all rows write the same column.
"""

import sys
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from gpt2_lightning.decoder import Cache, Decoder
from gpt2_lightning.errors import MachineError
from gpt2_lightning.generation.fixed import FixedCache
from gpt2_lightning.generation.sampler import Candidates, candidates, draw, uniforms
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["PADDING", "Session", "continue_tokens"]

PADDING = -1

Ended = Callable[[int, int], bool]
Observe = Callable[[Tensor, Candidates], None]


class Session:
    """Texts being continued side by side: their tokens, the cache, and ``logits`` ``[B, V]`` of each one's next token.

    The context of row b begins at column ``starts[b]``. Prompts must not be empty; at most ``room`` tokens can be appended.
    With ``fixed`` the steps are of fixed shape, and no text can be selected twice.
    """

    def __init__(self, decoder: Decoder, prompts: list[list[int]], room: int, slide_by: int = 1, fixed: bool = False) -> None:
        self.decoder, self.slide_by = decoder, slide_by
        self.cache: Cache
        device = decoder.wte.weight.device
        self.width = max(map(len, prompts))
        rows = [[PADDING] * (self.width - len(prompt)) + prompt + [PADDING] * room for prompt in prompts]
        self.tokens = torch.tensor(rows, device=device)
        self.starts = torch.tensor([self.width - len(prompt) for prompt in prompts], device=device)
        columns = min(self.width + room, decoder.config.block_size)
        self.fixed = FixedCache(decoder, len(prompts), columns) if fixed and room > 1 else None
        self.prefill()

    @property
    def history(self) -> Int[Tensor, "B T"]:
        """Prompts and continuations so far, padded on the left."""
        return self.tokens[:, : self.width]

    def prefill(self) -> None:
        """Read what the context holds of each text into a new cache: all of it, or its end where that is too long."""
        block_size = self.decoder.config.block_size
        lengths = self.width - self.starts
        kept = torch.where(lengths > block_size, block_size + 1 - self.slide_by, lengths)
        self.starts, longest = self.width - kept, int(kept.max())
        columns = min(block_size, longest + self.tokens.shape[1] - self.width)
        self.cache = Cache(self.decoder.config, longest - kept, columns, self.decoder.wte.weight.dtype)
        hidden = self.decoder.hidden(self.history[:, -longest:].clamp(min=0), self.cache)
        self.logits = self.decoder.head(hidden[:, -1])
        self.full = self.width + block_size - longest  # the width at which the context is
        if self.fixed:
            self.cache = self.fixed.load(self.cache)

    def append(self, tokens: Int[Tensor, "B"]) -> None:
        """Add one token to each text, and work out the logits behind it."""
        self.tokens[:, self.width] = tokens
        self.width += 1
        if self.width > self.full:
            del self.cache  # or its successor would lie beside it
            self.prefill()
        elif self.fixed:
            self.logits = self.fixed.step(tokens)
        else:
            self.logits = self.decoder(tokens[:, None], self.cache)[:, -1]

    def select(self, rows: Int[Tensor, "B_new"]) -> None:
        """Go on with these texts alone, in this order; one may come several times, and the copies part from here on."""
        if len(rows) != len(self.starts) or not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            self.tokens, self.starts, self.logits = self.tokens[rows], self.starts[rows], self.logits[rows]
            self.cache.select(rows)


def begin(decoder: Decoder, prompts: list[list[int]], room: int, slide_by: int, step: str) -> Session:
    """A session with steps of the kind asked for; ``auto`` goes without a capture that fails, and says so."""
    try:
        return Session(decoder, prompts, room, slide_by, step == "fixed" or (step == "auto" and decoder.wte.weight.is_cuda))
    except MachineError as error:
        if step == "fixed":
            raise
        warn_once(f"a step {error.rule}; steps grow")
        return Session(decoder, prompts, room, slide_by)


@cache
def warn_once(text: str) -> None:
    """Say it, and not again."""
    print(f"warning: {text}", file=sys.stderr)


@torch.inference_mode()
def continue_tokens(
    decoder: Decoder,
    prompts: list[list[int]],
    limits: list[int],
    sampler: SamplerConfig,
    keys: list[int],
    ended: Ended = lambda row, token: False,
    slide_by: int = 1,
    observe: Observe | None = None,
    step: str = "auto",
) -> list[list[int]]:
    """The continuation of each prompt: at most ``limits`` tokens, and none behind the one of which ``ended(row, token)``.

    ``keys`` are the prompts' keys of chance; ``observe`` sees every step's logits and candidates. ``step`` is that of
    GenerateConfig. The decoder has to be in eval mode.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    live = [row for row, limit in enumerate(limits) if limit]
    if not live:
        return texts
    session = begin(decoder, [prompts[row] for row in live], max(limits), slide_by, step)
    for place in range(max(limits)):
        found = candidates(session.logits, sampler, session.history)
        if observe:
            observe(session.logits, found)
        tokens = draw(found, sampler, uniforms([keys[row] for row in live], place))
        for row, token in zip(live, tokens.tolist(), strict=True):
            texts[row].append(token)
        goes_on = [not ended(row, texts[row][-1]) and len(texts[row]) < limits[row] for row in live]
        live = [row for row, yes in zip(live, goes_on, strict=True) if yes]
        if not live:
            break
        if not all(goes_on):
            places = torch.tensor(goes_on, device=tokens.device).nonzero()[:, 0]
            session.select(places)
            tokens = tokens[places]
        session.append(tokens)
    return texts
