"""Beam search: prompts in, the continuations of greatest log-probability for their length out.

Each held sequence is extended by its k likeliest words; of all extensions the ``beams`` best are held, so one that is worse
than the worst of them is dropped. End-of-text finishes a sequence. The finished are ranked by log-probability / length **
length_penalty, and the search stops as soon as none that is held can be among the best asked for.
One number: 2 * beams, the extensions looked at, so that enough go on though each sequence may end in one of them.
Choice not taken: to stop at ``beams`` finished sequences, which returns worse ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.generation.engine import Session
from gpt2_lightning.generation.sampler import Candidates, penalise, top_k
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["Beam", "beam_search"]


class Beam(NamedTuple):
    """A finished sequence: its new tokens, end-of-text included, and log-probability / length ** length_penalty."""

    tokens: list[int]
    score: float


class Search:
    """The search for one prompt: what is finished, and how good what is held can become."""

    def __init__(self, config: SamplerConfig, limit: int, n: int) -> None:
        self.beams, self.penalty, self.limit, self.n = config.beams, config.length_penalty, limit, n
        self.finished: list[Beam] = []

    def finish(self, tokens: list[int], log_p: float) -> None:
        """Keep the sequence if it is one of the best."""
        self.finished.append(Beam(tokens, log_p / len(tokens) ** self.penalty))
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: self.beams]

    def is_over(self, length: int, best_log_p: float) -> bool:
        """Whether no sequence of that log-probability can end among the n best; a longer one has no greater log-probability."""
        if length == self.limit or best_log_p == -torch.inf:
            return True
        divisor = (self.limit if self.penalty > 0 else length + 1) ** self.penalty
        return len(self.finished) >= self.n and (self.beams == 1 or best_log_p / divisor <= self.finished[self.n - 1].score)


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: list[list[int]],
    limits: list[int],
    config: SamplerConfig,
    end_of_text: int,
    n: int = 1,
    slide_by: int = 1,
) -> list[list[Beam]]:
    """The ``n`` best continuations of each prompt, at most ``limits`` tokens long, best first.

    Fewer than ``n`` where the vocabulary offers no more, none where the limit is 0. ``n`` must be at most ``config.beams``.
    """
    beams = config.beams
    searches = [Search(config, limit, n) for limit in limits]
    live = [i for i, limit in enumerate(limits) if limit]
    if not live:
        return [[] for _ in prompts]
    session = Session(decoder, [prompts[i] for i in live], max(limits), slide_by)
    device, begin = session.logits.device, session.width
    session.select(torch.arange(len(live), device=device).repeat_interleave(beams))
    log_p = torch.full((len(live), beams), -torch.inf, device=device)
    log_p[:, 0] = 0.0
    for length in range(1, max(limits) + 1):
        found = extensions(session, log_p, config)
        parents = found.tokens // session.logits.shape[1] + beams * torch.arange(len(live), device=device)[:, None]
        tokens = found.tokens % session.logits.shape[1]
        last = torch.tensor([length == searches[i].limit for i in live], device=device)
        over = torch.eq(tokens, end_of_text) | last[:, None]
        ends = over & (torch.arange(over.shape[1], device=device) < beams) & (found.logits > -torch.inf)
        for i, rank in ends.nonzero().tolist():
            text = [*session.tokens[parents[i, rank], begin : session.width].tolist(), int(tokens[i, rank])]
            searches[live[i]].finish(text, float(found.logits[i, rank]))
        log_p, held = found.logits.masked_fill(over, -torch.inf).sort(dim=1, descending=True, stable=True)
        log_p, held = log_p[:, :beams], held[:, :beams]
        goes_on = [not searches[i].is_over(length, best) for i, best in zip(live, log_p[:, 0].tolist(), strict=True)]
        live = [i for i, yes in zip(live, goes_on, strict=True) if yes]
        if not live:
            break
        kept = torch.tensor(goes_on, device=device)
        log_p, held, parents, tokens = log_p[kept], held[kept], parents[kept], tokens[kept]
        session.select(parents.gather(1, held).flatten())
        session.append(tokens.gather(1, held).flatten())
    return [search.finished[:n] for search in searches]


def extensions(session: Session, log_p: Float[Tensor, "P beams"], config: SamplerConfig) -> Candidates:
    """The best extensions of each prompt's sequences, ``[P, 2 * beams]``; a token's number counts on through the beams."""
    V = session.logits.shape[1]
    own = penalise(session.logits.float().log_softmax(-1), config, session.history)
    words = top_k(own, min(V, config.k or V))
    total = (log_p.flatten()[:, None] + words.logits).view(len(log_p), -1)
    numbers = (words.tokens + V * torch.arange(config.beams, device=own.device).repeat(len(log_p))[:, None]).view_as(total)
    best = top_k(total, min(2 * config.beams, total.shape[1]))
    return Candidates(best.logits, numbers.gather(1, best.tokens))
