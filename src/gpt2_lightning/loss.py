"""The loss: L = cross-entropy(Y | X) + beta * ||theta||_2, the norm over all trainable parameters, not its square.

In: the decoder's hidden states, the tied head, targets; the parameters. Out: LossTerms.
One number: 206 MB, the float32 logits of 1,024 tokens over 50,257 words, as large again in the backward pass; here only
one chunk of them exists at a time, and its gradient takes its place.
Choices not taken: autograd through the norm, which builds a graph over every parameter for a gradient that is known in
closed form, beta * theta / ||theta||; and recomputing logits in the backward pass, which costs a third more of the head.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2_lightning.settings.loss import LossConfig
from gpt2_lightning.shards import is_sharded, own_part, sum_of_parts

__all__ = [
    "IGNORED",
    "LossConfig",
    "LossTerms",
    "add_penalty_gradient",
    "clip_gradients",
    "cross_entropy",
    "parameter_norm",
    "scale_gradients",
    "token_losses",
]

IGNORED = -100  # the target of tokens that carry no loss: X, and padding
CHUNK_BYTES = 128 * 2**20  # of float32 logits
LANES = 64  # matrix products on a GPU want the vocabulary to be a multiple of this


class LossTerms(NamedTuple):
    """The terms of L, each a scalar tensor: ``total = cross_entropy + beta * norm``."""

    cross_entropy: Tensor
    norm: Tensor
    total: Tensor


def loss_terms(cross_entropy: Tensor, norm: Tensor, config: LossConfig) -> LossTerms:
    """Put the terms together; the only place where beta meets the loss. With beta = 0 the total is the cross-entropy itself."""
    total = cross_entropy + config.beta * norm if config.beta else cross_entropy
    return LossTerms(cross_entropy, norm, total)


def cross_entropy(
    hidden: Float[Tensor, "*batch C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "*batch"],
    chunk_tokens: int = 0,
    weights: Float[Tensor, "*batch"] | None = None,
    over: float | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N"]]:
    """Mean cross-entropy in nats over the targets that are not IGNORED, and each token's own (0 where ignored, no gradient).

    ``weights`` makes it a weighted mean; ``over`` is what the sum is divided by instead of their number or weight.
    ``chunk_tokens`` bounds how many tokens' logits exist at once; 0 means as many as fit CHUNK_BYTES.
    Under autocast the matrix products run in its type; the softmax is never below float32.
    """
    chunk = chunk_tokens or max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    flat, aims = hidden.flatten(0, -2), targets.flatten()
    flat_weights = None if weights is None else weights.flatten()
    kept = few_counted(aims)
    if kept is None:
        return LinearCrossEntropy.apply(flat, weight, aims, flat_weights, over, chunk, compute_dtype(hidden))
    own = None if flat_weights is None else flat_weights[kept]
    loss, losses = LinearCrossEntropy.apply(flat[kept], weight, aims[kept], own, over, chunk, compute_dtype(hidden))
    return loss, losses.new_zeros(len(aims)).index_copy(0, kept, losses)


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "*batch C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "*batch"],
    chunk_tokens: int = 0,
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Every token's cross-entropy (0 where ignored) and whether its target was the likeliest word: for evaluation."""
    chunk = chunk_tokens or max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    losses, hits = [], []
    flat, aims = hidden.flatten(0, -2), targets.flatten()
    kept = few_counted(aims)
    for x, y in zip(*((t if kept is None else t[kept]).split(chunk) for t in (flat, aims)), strict=True):
        logits = F.linear(x, weight).float()
        losses.append(F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="none"))
        hits.append(logits.argmax(-1) == y)
    if kept is None:
        return torch.cat(losses), torch.cat(hits)
    nats, right = torch.cat(losses), torch.cat(hits)
    return nats.new_zeros(len(aims)).index_copy(0, kept, nats), right.new_zeros(len(aims)).index_copy(0, kept, right)


def few_counted(targets: Int[Tensor, "N"]) -> Int[Tensor, "K"] | None:
    """The places of the targets that count, where the head is spared half its work or more; None elsewhere.

    On a CPU alone: a GPU would have to wait until it is known how many there are.
    """
    if targets.is_cuda:
        return None
    kept = (targets != IGNORED).nonzero()[:, 0]
    return kept if 0 < 2 * len(kept) <= len(targets) else None


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the head's matrix products: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ weight.T``, chunk by chunk, both gradients made while the logits are at hand."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor | None,
        over: float | None,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        V = weight.shape[0]
        padding = -V % LANES if hidden.is_cuda else 0
        w = F.pad(weight.to(dtype), (0, 0, 0, padding)) if padding else weight.to(dtype)
        counted = (targets != IGNORED).to(softmax_dtype(dtype))
        scale, total = token_shares(counted, token_weights)
        ratio = None if over is None else total / over  # not within the shares, which half precision would lose
        d_hidden, d_weight, losses = torch.empty_like(hidden), torch.zeros_like(w, dtype=weight.dtype), []
        for i in range(0, len(targets), chunk):
            x, target, share = hidden[i : i + chunk].to(dtype), targets[i : i + chunk, None], scale[i : i + chunk, None]
            log_p = log_probabilities(x @ w.T, V)
            target = target.clamp(min=0)
            losses.append(-log_p.gather(1, target)[:, 0])
            d_logits = log_p.exp_().scatter_add_(1, target, torch.full_like(share, -1.0)).to(dtype)  # p - one-hot
            d_hidden[i : i + chunk] = (d_logits @ w) * share
            accumulate(d_weight, d_logits.T, x * share.to(dtype))
        ctx.save_for_backward(d_hidden, d_weight[:V], ratio)
        per_token = torch.cat(losses) * counted
        ctx.mark_non_differentiable(per_token)
        mean = (per_token * scale).sum()
        return mean if ratio is None else mean * ratio, per_token

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_weight, ratio = ctx.saved_tensors
        grad = grad if ratio is None else grad * ratio
        if not grad.is_cuda and grad == 1:
            return d_hidden, d_weight, None, None, None, None, None
        return d_hidden * grad, d_weight * grad, None, None, None, None, None


def token_shares(counted: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each token's part in the mean, ``[N]``: 0 where it does not count, all 0 where none does; and what all weigh together."""
    weighted = counted if weights is None else counted * weights
    total = weighted.sum()
    return weighted / torch.where(total > 0, total, 1.0), total


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where that is what is computed in."""
    return torch.promote_types(dtype, torch.float32)


def log_probabilities(logits: Tensor, vocab_size: int) -> Tensor:
    """Log-softmax, at least in float32; columns from ``vocab_size`` on are padding and get no probability."""
    logits[:, vocab_size:] = -torch.inf
    return F.log_softmax(logits, dim=-1, dtype=softmax_dtype(logits.dtype))


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, inside the matrix product where the types allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


@torch.no_grad()
def parameter_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm over all tensors together, a tensor that occurs twice counted once; 0 when there are none.

    Of sharded tensors each rank brings its part, and all call it together. Rows first, then the norm of those: torch's
    float32 norm over a whole embedding is off by 5e-4 on a CPU, this by 2e-7.
    """
    unique = list({id(t): t.detach() for t in tensors}.values())
    if not unique:
        return torch.zeros(())
    own = [own_part(t) for t in unique]
    rows = [torch.linalg.vector_norm(t, dim=-1) if t.ndim > 1 else t for t in own]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(r.flatten()) for r in rows]))
    return sum_of_parts(norm * norm, unique).sqrt() if is_sharded(unique[0]) else norm


@torch.no_grad()
def add_penalty_gradient(parameters: Iterable[nn.Parameter], beta: float) -> Float[Tensor, ""]:
    """Add the gradient of beta * ||theta||_2 to the parameters' own, and return ||theta||_2.

    To be called once per optimizer step, after the ranks' gradients are averaged and before clipping. The gradient at
    theta = 0 is taken as 0, the least of the subgradients there.
    """
    unique = list({id(p): p for p in parameters if p.requires_grad}.values())
    norm = parameter_norm(unique)
    scale = torch.where(norm > 0, beta / norm, 0.0)
    for p in unique:
        if p.grad is None:
            p.grad = p * scale
        else:
            own_part(p.grad).addcmul_(own_part(p), scale)
    return norm


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: Float[Tensor, ""]) -> None:
    """Multiply all gradients, or a rank's parts of them, by one factor."""
    if gradients := [own_part(p.grad) for p in parameters if p.grad is not None]:
        torch._foreach_mul_(gradients, factor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], most: float, norm: Float[Tensor, ""]) -> None:
    """Scale gradients whose norm over all of them is ``norm`` down to the largest allowed."""
    held = [p for p in parameters if p.grad is not None]
    if not held or not is_sharded(held[0]):
        return torch.nn.utils.clip_grads_with_norm_(held, most, norm)
    scale_gradients(held, (most / (norm + 1e-6)).clamp(max=1.0))
