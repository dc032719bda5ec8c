"""What a model looks like inside: a decoder in; histograms of its weights and gradients, and the entropy of its attention, out.

Nothing here draws at random or changes the decoder, so that a run is the same whether it is looked at or not.
One number: 65,536 values of a part are looked at, evenly spaced, which is what a histogram of 64 bins can show.
Choice not taken: a histogram of each tensor, of which there are hundreds.
"""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpt2_lightning.board import Histogram
from gpt2_lightning.decoder import Decoder, visible
from gpt2_lightning.shards import undivided

__all__ = ["ROWS", "attention_entropy", "histogram", "histograms"]

BINS, MOST_VALUES = 64, 2**16
ROWS, TOKENS = 4, 256  # of a batch whose attention is looked at


def histograms(decoder: Decoder) -> dict[str, Histogram]:
    """``weights/PART`` and ``gradients/PART`` of the embeddings and of each layer's attention and MLP.

    Gradients are those of the step before, clipped, where there are any. Of a sharded decoder all ranks call it together.
    """
    found = {}
    for name, weights in parts(decoder).items():
        found[f"weights/{name}"] = histogram(weights)
        found[f"gradients/{name}"] = histogram(weight.grad for weight in weights if weight.grad is not None)
    return {tag: one for tag, one in found.items() if one is not None}


def parts(decoder: Decoder) -> dict[str, list[Tensor]]:
    """The matrices of each part; two digits for a layer, so that their names are in order."""
    found: dict[str, list[Tensor]] = {"wte": [decoder.wte.weight], "wpe": [decoder.wpe.weight]}
    for i, block in enumerate(decoder.h):
        found[f"h.{i:02d}.attn"] = [block.attn.c_attn.weight, block.attn.c_proj.weight]  # type: ignore[union-attr, list-item]
        found[f"h.{i:02d}.mlp"] = [block.mlp.c_fc.weight, block.mlp.c_proj.weight]  # type: ignore[union-attr, list-item]
    return found


@torch.no_grad()
def histogram(tensors: Iterable[Tensor]) -> Histogram | None:
    """Of evenly spaced values of all of them, of which one at a time is whole; None where none is finite."""
    given = list(tensors)
    values = torch.cat([thinned(undivided(t.detach()), MOST_VALUES // len(given)) for t in given]) if given else torch.empty(0)
    values = values[values.isfinite()].double()
    if not len(values):
        return None
    low, high = values.min().item(), values.max().item()
    high = high if high > low else math.nextafter(low, math.inf) if low else 1e-12
    counts = torch.histc(values, BINS, low, high).tolist()
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)[1:].tolist()
    return Histogram(low, edges, counts, values.sum().item(), values.square().sum().item())


def thinned(tensor: Tensor, most: int) -> Tensor:
    """Some ``most`` of its values, from all of its columns."""
    stride = max(1, tensor.numel() // most)
    while math.gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    return tensor.flatten()[::stride]


@torch.no_grad()
def attention_entropy(decoder: Decoder, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "L H"]:
    """Nats of each layer's and head's attention, the mean over all places of a few rows.

    0 where a head looks at one token, at most ``log(t)`` at the t-th place. One layer's weights are held at a time.
    """
    tokens = tokens[:ROWS, : min(TOKENS, decoder.config.block_size)]
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    starts = decoder.starts(tokens, columns, None)
    mask = visible(columns, starts, len(columns), decoder.config.attention_window)
    mask = columns[:, None] >= columns if mask is None else mask
    found: list[Tensor] = []

    def observe(module: nn.Module, inputs: Any, qkv: Tensor) -> None:
        q, k, _ = qkv.view(*tokens.shape, 3, decoder.config.n_head, -1).permute(2, 0, 3, 1, 4).float()
        scores = (q @ k.transpose(2, 3)) * q.shape[3] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        found.append(torch.special.entr(weights).sum(-1).mean((0, 2)))

    was_training = decoder.training
    decoder.eval()
    with ExitStack() as stack:
        for block in decoder.h:
            stack.callback(block.attn.c_attn.register_forward_hook(observe).remove)  # type: ignore[union-attr, operator]
        decoder.hidden(tokens)
    decoder.train(was_training)
    return torch.stack(found)
