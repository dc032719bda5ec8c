"""The GPT-2 decoder: tokens in, hidden states or logits out.

In: tokens ``[B, T]``, T at most ``block_size``. Out: logits ``[B, T, vocab_size]``; training asks for the hidden states
``[B, T, C]`` instead and lets the loss take the tied head in chunks, since logits are 200 times as wide as what they come from.
One number: 124,439,808 parameters at the defaults, the head counted once.
Choice not taken: a separate ``lm_head`` module; the head is ``wte`` itself, so there is nothing to tie or to untie by mistake.
Parameter names are those of the released weights; linear maps hold ``[out, in]`` where those hold ``[in, out]``.
"""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gpt2_lightning.settings.decoder import DecoderConfig
from gpt2_lightning.weights import read_weights, write_weights

__all__ = ["Cache", "Decoder", "DecoderConfig", "Undrawn"]

STRETCH = 256  # queries
MOST_WEIGHTS = 2**24  # of attention, in a layer


class Cache:
    """The keys and values of the tokens so far, ``[2, n_layer, B, n_head, columns, head]``: what a next token attends to.

    Row b's text begins at column ``starts[b]``; the columns before it are padding. ``length`` columns are filled. No gradient
    goes through it.
    """

    spare: Tensor | None = None  # where the next selection goes: fresh memory costs more than the copy

    def __init__(self, config: DecoderConfig, starts: Int[Tensor, "B"], columns: int, dtype: torch.dtype) -> None:
        shape = (2, config.n_layer, len(starts), config.n_head, columns, config.n_embd // config.n_head)
        self.held = torch.empty(shape, dtype=dtype, device=starts.device)
        self.starts, self.length = starts.clone(), 0
        self.padded = bool(starts.any())

    def following(self, n: int) -> tuple[Int[Tensor, "T"], int]:
        """The columns of the next n tokens, and the end of those that they attend to."""
        end = self.length + n
        return torch.arange(self.length, end, device=self.starts.device), end

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of new tokens, ``[B, n_head, T, head]``, behind the others; returns all of the layer's."""
        end = self.length + k.shape[2]
        keys, values = self.held[0, layer, :, :, :end], self.held[1, layer, :, :, :end]
        keys[:, :, self.length :], values[:, :, self.length :] = k.detach(), v.detach()
        return keys, values

    def select(self, rows: Int[Tensor, "B_new"]) -> None:
        """Go on with these rows alone, in this order; a row may come several times."""
        old, new = self.held, self.spare
        if new is None or new.shape[2] != len(rows):
            new = old.new_empty(*old.shape[:2], len(rows), *old.shape[3:])
        for i, row in enumerate(rows.tolist()):
            new[:, :, i, :, : self.length] = old[:, :, row, :, : self.length]
        self.held, self.spare = new, old if old.shape == new.shape else None
        self.starts = self.starts[rows]


class Attention(nn.Module):
    """Causal self-attention, over the whole context or a local window."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "*#B T S"] | None, cache: Cache | None
    ) -> Float[Tensor, "B T C"]:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, n_head, T, head]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and T > 1
        if causal and not dropout and products_are_faster(q):
            y = causal_products(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def products_are_faster(q: Float[Tensor, "B H T D"]) -> bool:
    """Whether plain products beat torch's fused attention: in bf16 on a CPU, where its kernel is no faster than in float32.

    Their weights have to be kept for the gradient, so only while those are few.
    """
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and q[..., 0].numel() * q.shape[2] <= MOST_WEIGHTS


def causal_products(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
) -> Float[Tensor, "B H T D"]:
    """Causal attention, the queries in stretches, each with the keys up to its end; the softmax is in float32."""
    parts = []
    for start in range(0, q.shape[2], STRETCH):
        part = q[:, :, start : start + STRETCH]
        end = start + part.shape[2]
        later = torch.ones(part.shape[2], end, dtype=torch.bool, device=q.device).triu(start + 1)
        scores = (part @ k[:, :, :end].transpose(2, 3)).float() * q.shape[3] ** -0.5
        parts.append(scores.masked_fill(later, -torch.inf).softmax(-1).to(q.dtype) @ v[:, :, :end])
    return torch.cat(parts, 2)


class MLP(nn.Module):
    """Four times as wide inside, tanh-approximated GELU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each with its residual: LayerNorm before them (GPT-2) or after the sum (GPT-1)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.post_norm = config.norm == "post"
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "*#B T S"] | None, cache: Cache | None
    ) -> Float[Tensor, "B T C"]:
        if self.post_norm:
            x = self.ln_1(x + self.drop(self.attn(x, mask, cache)))
            return self.ln_2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self.attn(self.ln_1(x), mask, cache))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Decoder(nn.Module):
    """GPT-2 (Radford et al. 2019). ``decoder(tokens)`` gives logits; ``decoder.hidden(tokens)`` what the head multiplies."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd) if config.norm == "pre" else nn.Identity()
        self.initialise()

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "Decoder":
        """The GPT-2 in a folder that transformers or ``save_pretrained`` wrote, for evaluation; raises CheckpointError."""
        config, tensors = read_weights(folder, dtype)
        with torch.device("meta"), Undrawn():
            decoder = cls(config)
        decoder.load_state_dict(tensors, assign=True)
        return decoder.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder that transformers and ``from_pretrained`` read; raises ConfigError if GPT-2 lacks a setting, OutputError."""
        write_weights(folder, self.config, self.state_dict())

    @torch.no_grad()
    def initialise(self) -> None:
        """GPT-2's: N(0, 0.02), residual projections scaled by 1/sqrt(2 n_layer), zero biases, unit norms."""
        residual_std = self.config.init_std / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else self.config.init_std)

    def hidden(self, tokens: Int[Tensor, "B T"], cache: Cache | None = None) -> Float[Tensor, "B T C"]:
        """Last hidden states after the final LayerNorm; raises ValueError beyond ``block_size``.

        With a cache the tokens go on behind those it holds, and are added to it.
        """
        n = tokens.shape[1]
        columns, end = cache.following(n) if cache else (torch.arange(n, device=tokens.device), n)
        if self.config.block_size < end:
            raise ValueError(f"tokens must be at most block_size = {self.config.block_size} long, got {end}: crop them")
        starts = self.starts(tokens, columns, cache)
        positions = self.wpe.weight[end - n : end] if starts is None else self.wpe((columns - starts).clamp(min=0))
        mask = visible(columns, starts, end, self.config.attention_window)
        x = self.drop(self.wte(tokens) + positions)
        for block in self.h:
            x = block(x, mask, cache)
        if cache:
            cache.length = end
        return self.ln_f(x)

    def forward(self, tokens: Int[Tensor, "B T"], cache: Cache | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position."""
        return self.head(self.hidden(tokens, cache))

    def head(self, hidden: Float[Tensor, "*B C"]) -> Float[Tensor, "*B V"]:
        """Logits of hidden states: the embedding again."""
        return F.linear(hidden, self.wte.weight)

    def starts(self, tokens: Int[Tensor, "B T"], columns: Int[Tensor, "T"], cache: Cache | None) -> Int[Tensor, "B T"] | None:
        """The column where each token's text begins, with document_mask its document; None when that is 0 for all."""
        if not self.config.document_mask:
            return cache.starts[:, None].expand(tokens.shape) if cache and cache.padded else None
        starts = document_starts(tokens, self.config.vocab_size - 1)
        if cache:
            starts = torch.maximum(torch.where(starts > 0, starts + columns[0], 0), cache.starts[:, None])
            ended = tokens[:, -1] == self.config.vocab_size - 1
            cache.starts.copy_(torch.where(ended, columns[-1] + 1, starts[:, -1]))
        return starts


def visible(
    columns: Int[Tensor, "T"], starts: Int[Tensor, "B T"] | None, n_keys: int, window: int | None
) -> Bool[Tensor, "*#B T S"] | None:
    """True where a token at column t (row) sees column s: begin of its text <= s <= t, and t - window < s; itself always.

    None where a causal mask, or for a single token none at all, says the same.
    """
    reach = n_keys if window is None else window
    if starts is None and reach >= n_keys and len(columns) in (1, n_keys):
        return None
    distance = columns[:, None] - torch.arange(n_keys, device=columns.device)
    mask = (distance >= 0) & (distance < reach)
    if starts is None:
        return mask
    begun = torch.arange(n_keys, device=columns.device) >= starts[:, :, None]
    return (mask & begun | (distance == 0))[:, None]


class Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: on the meta device a first draw loads 70 MB of torch, for a second and for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func in (Tensor.normal_, nn.init.normal_) else func(*args, **(kwargs or {}))


def document_starts(tokens: Int[Tensor, "B T"], end_of_text: int) -> Int[Tensor, "B T"]:
    """Where each position's document begins: at the start of the row, or behind the last end-of-text before it."""
    behind = F.pad(tokens[:, :-1] == end_of_text, (1, 0))
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(behind, places, 0).cummax(1).values
