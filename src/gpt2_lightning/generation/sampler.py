"""The sampler: the logits of the next token in, the candidates for it and the one that is drawn out.

In: logits ``[B, V]``, the text so far ``[B, T]`` where repetition counts, and a uniform number a row. Out: a token a row.
One number: 64, the logits whose maximum is looked at first, which finds the k likeliest of 50,257 without sorting them.
Choice not taken: torch.topk and a generator. topk promises nothing about ties, which are common in bfloat16; a generator's
numbers depend on what else is in the batch. Here a tie goes to the lower token, and a row's text depends on that row alone.
No function waits for the device, none has a state.
"""

import math
from collections import Counter
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from gpt2_lightning.data.chance import keyed_hash
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["Candidates", "candidates", "draw", "entropy", "penalise", "probabilities", "prompt_keys", "top_k", "uniforms"]

CHUNK = 64


class Candidates(NamedTuple):
    """The tokens of the draw: likeliest first where they had to be sorted, in the vocabulary's order otherwise."""

    logits: Float[Tensor, "B K"]  # less the greatest, over the temperature; -inf where dropped
    tokens: Int[Tensor, "B K"]


def candidates(logits: Float[Tensor, "B V"], config: SamplerConfig, history: Int[Tensor, "B T"] | None = None) -> Candidates:
    """What the sampler leaves of the vocabulary: K = 1 when greedy, else k where it is set, else what has to be looked at.

    ``history`` is prompt and continuation; its left padding is -1. The filters follow each other in the order of transformers:
    repetition, temperature, top-k, then the rank threshold, nucleus, min-p and typical, each on what the one before left.
    """
    scaled, tokens = shortlist(penalise(logits.float(), config, history), config)
    if config.min_p is not None:
        scaled = scaled.where(scaled >= math.log(config.min_p), -math.inf)
    if config.typical is not None:
        scaled = scaled.where(is_typical(scaled, config.typical), -math.inf)
    return Candidates(scaled, tokens)


def shortlist(logits: Float[Tensor, "B V"], config: SamplerConfig) -> Candidates:
    """What greedy, temperature, top-k, the rank threshold and the nucleus leave: those that go by the order of the tokens."""
    if config.k == 1 or config.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
        return Candidates(torch.zeros_like(tokens, dtype=logits.dtype), tokens)
    if config.k is None and config.epsilon is None:
        scaled = temper(logits, logits.amax(-1, keepdim=True), config)
        return nucleus(scaled, 1.0 if config.p is None else config.p)
    values, tokens = top_k(logits, config.k or logits.shape[1])
    scaled = temper(values, values[:, :1], config)
    if config.epsilon is not None:
        log_p = temper(logits, values[:, :1], config).log_softmax(-1).gather(1, tokens)
        scaled = scaled.where(above_rank_threshold(log_p, config.epsilon, config.tau), -math.inf)
    if config.p is not None and config.p < 1:
        scaled = scaled.where(begins_below(scaled.softmax(-1), config.p), -math.inf)
    return Candidates(scaled, tokens)


def nucleus(scaled: Float[Tensor, "B V"], mass: float) -> Candidates:
    """The likeliest of all tokens that hold that mass (Holtzman et al. 2020), without sorting those that cannot be among them.

    Tokens below (1 - mass) / V hold less than 1 - mass together. They are counted where that costs no wait, on a CPU.
    """
    V = scaled.shape[1]
    if mass == 1:
        return Candidates(scaled, torch.arange(V, device=scaled.device).expand_as(scaled))
    p = scaled.softmax(-1)
    possible = p > (1 - mass) / (2 * V)  # half of it leaves room for rounding
    # a chunk at least: fewer numbers than a vector register holds are added up in another order, and a row's last bit would
    # depend on the other rows
    values, tokens = top_k(scaled, max(CHUNK, int(possible.sum(-1).max())) if p.device.type == "cpu" else V)
    return Candidates(values.where(begins_below(p.gather(1, tokens), mass), -math.inf), tokens)


def penalise(logits: Float[Tensor, "B V"], config: SamplerConfig, history: Int[Tensor, "B T"] | None) -> Float[Tensor, "B V"]:
    """Logits after the repetition penalty (Keskar et al. 2019) and the ban of n-grams that the text holds already.

    A row whose every token would be banned keeps them all.
    """
    if history is None or (config.repetition_penalty == 1 and config.no_repeat_ngram == 0):
        return logits
    V = logits.shape[1]
    seen = history.long().where(history >= 0, V)  # padding goes to a spare column
    logits = pad(logits, (0, 1))
    score = logits.gather(1, seen)
    score = torch.where(score < 0, score * config.repetition_penalty, score / config.repetition_penalty)
    logits = logits.scatter(1, seen, score.nan_to_num(neginf=-math.inf))[:, :V]
    if config.no_repeat_ngram == 0:
        return logits
    banned = completes_ngram(seen, config.no_repeat_ngram, V)
    return logits.masked_fill(banned & ~banned.all(-1, keepdim=True), -math.inf)


def completes_ngram(seen: Int[Tensor, "B T"], n: int, V: int) -> Bool[Tensor, "B V"]:
    """The tokens that would make the last n tokens an n-gram of the text; padding is ``V``, and on the left it matches none."""
    banned = torch.zeros(len(seen), V + 1, dtype=torch.bool, device=seen.device)
    if seen.shape[1] >= n:
        windows = seen.unfold(1, n, 1)  # B, T - n + 1, n
        same = (windows[..., :-1] == seen[:, None, seen.shape[1] + 1 - n :]).all(-1)
        banned.scatter_(1, windows[..., -1].where(same, V), True)
    return banned[:, :V]


def top_k(logits: Float[Tensor, "B V"], k: int) -> Candidates:
    """The k greatest, or all where there are fewer, in descending order; of equals the lower token comes first.

    All of them lie in the k chunks of greatest maximum, again the earlier of equals: each of these has a token that comes
    before every token outside them.
    """
    B, V = logits.shape
    values = logits.float()
    count = partial(torch.arange, device=logits.device)
    if 2 * k * CHUNK < V:
        n = V // CHUNK
        best = values[:, : n * CHUNK].unflatten(1, (n, CHUNK)).amax(-1)
        chunks = order(best, count(n).expand(B, n), k)
        inside = (chunks[:, :, None] * CHUNK + count(CHUNK)).flatten(1)
        tokens = torch.cat([inside, count(n * CHUNK, V).expand(B, -1)], 1)
        values = values.gather(1, tokens)
    else:
        tokens = count(V).expand(B, V)
    first = order(values, tokens, min(k, V))
    return Candidates(values.gather(1, first), tokens.gather(1, first))


def order(values: Float[Tensor, "B N"], index: Int[Tensor, "B N"], k: int) -> Int[Tensor, "B k"]:
    """The places of the k greatest values, the lower index first among equals: both go into one integer, so none are equal."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: -0.0 equals 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as integers, floats below 0 are in the wrong order
    return ((bits << 32) - index).topk(k).indices


def temper(logits: Float[Tensor, "B N"], best: Float[Tensor, "B 1"], config: SamplerConfig) -> Float[Tensor, "B N"]:
    """Logits less the greatest, over the temperature, which is kept within what a float32 can divide by."""
    limits = torch.finfo(torch.float32)
    return (logits - best).div_(min(max(config.temperature, limits.tiny), limits.max))


def above_rank_threshold(log_p: Float[Tensor, "B K"], epsilon: float, tau: float) -> Bool[Tensor, "B K"]:
    """Whether the token of rank i = 0, 1, ... has p_i > epsilon ** ((i + 1) / tau); rank 0 always does.

    p is the softmax over the whole vocabulary after temperature: a threshold on what k left would keep tokens only because
    k is small. The threshold falls with the rank, so that a dropped token can lie between kept ones.
    """
    rank = torch.arange(1, log_p.shape[1] + 1, device=log_p.device)
    return (log_p > rank * (math.log(epsilon) / tau)) | (rank == 1)


def begins_below(p: Float[Tensor, "B K"], mass: float) -> Bool[Tensor, "B K"]:
    """Which of the sorted tokens make up the smallest set of at least that mass: those with less than it before them."""
    return pad(p.cumsum(-1, dtype=torch.float64)[:, :-1], (1, 0)) < mass


def is_typical(logits: Float[Tensor, "B K"], mass: float) -> Bool[Tensor, "B K"]:
    """The smallest set of that mass whose surprise is nearest the entropy (Meister et al. 2023, equation 10)."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    away = (log_p + torch.special.entr(p).sum(-1, keepdim=True, dtype=torch.float64).float()).abs()
    place = torch.arange(logits.shape[1], device=logits.device).expand_as(away)
    nearest = order(-away, place, logits.shape[1])
    return torch.zeros_like(away, dtype=torch.bool).scatter(1, nearest, begins_below(p.gather(1, nearest), mass))


def probabilities(found: Candidates, config: SamplerConfig) -> Float[Tensor, "B K"]:
    """The distribution over the candidates, 0 where dropped; with ``draw=uniform`` all that are kept are equal."""
    if config.draw == "uniform":
        kept = found.logits > -math.inf
        return kept / kept.sum(-1, keepdim=True)
    return found.logits.softmax(-1)


def draw(found: Candidates, config: SamplerConfig, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose stretch of the cumulative distribution holds u in [0, 1); no rounding ends at a dropped one."""
    p = probabilities(found, config)
    if p.shape[1] == 1:
        return found.tokens[:, 0]
    u = u.to(p.device, non_blocking=True)[:, None]  # a blocking copy would wait for the step before it
    if p.shape[1] <= CHUNK**2:
        return found.tokens.gather(1, locate(p.double(), u)[0])[:, 0]
    chunks = pad(p, (0, -p.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK))
    chunk, u = locate(chunks.sum(-1).double(), u)
    inside, _ = locate(chunks.take_along_dim(chunk[:, :, None], 1)[:, 0].double(), u)
    return found.tokens.gather(1, chunk * CHUNK + inside)[:, 0]


def locate(mass: Float[Tensor, "B N"], u: Float[Tensor, "B 1"]) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """Where the share u of the whole mass is reached, and the share of that place's own mass that lies before u."""
    reached = mass.cumsum(-1).masked_fill(mass == 0, 0)  # what has no mass reaches nothing: it is never the first beyond u
    total = reached.amax(-1, keepdim=True)
    point = torch.minimum(u * total, total.nextafter(torch.zeros_like(total)))
    first = (reached > point).byte().argmax(-1, keepdim=True)
    own = mass.gather(1, first)
    return first, (1 - (reached.gather(1, first) - point) / own).clamp(min=0)


def entropy(
    logits: Float[Tensor, "B V"], found: Candidates, config: SamplerConfig
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Entropy in nats of the decoder's own distribution, and of the one that is drawn from."""
    before = torch.special.entr(logits.float().softmax(-1)).sum(-1)
    return before, torch.special.entr(probabilities(found, config)).sum(-1)


def prompt_keys(seed: int, prompts: list[list[int]]) -> list[int]:
    """A key a prompt, of the seed, its tokens and how many equal prompts came before: not of the others or their order."""
    before: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in map(tuple, prompts):
        keys.append(keyed_hash(seed, len(prompt), *prompt, before[prompt]))
        before[prompt] += 1
    return keys


def uniforms(keys: list[int], step: int) -> Float[Tensor, " B"]:
    """A float64 in [0, 1) for each key at that step: the upper 53 bits of a hash."""
    return torch.tensor([(keyed_hash(step, state=key) >> 11) * 2.0**-53 for key in keys], dtype=torch.float64)
