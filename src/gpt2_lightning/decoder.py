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

__all__ = ["Decoder", "DecoderConfig"]


class Attention(nn.Module):
    """Causal self-attention, over the whole context or a local window."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "*#B T T"] | None) -> Float[Tensor, "B T C"]:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, n_head, T, head]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


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

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.post_norm = config.norm == "post"
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T C"], mask: Bool[Tensor, "*#B T T"] | None) -> Float[Tensor, "B T C"]:
        if self.post_norm:
            x = self.ln_1(x + self.drop(self.attn(x, mask)))
            return self.ln_2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self.attn(self.ln_1(x), mask))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Decoder(nn.Module):
    """GPT-2 (Radford et al. 2019). ``decoder(tokens)`` gives logits; ``decoder.hidden(tokens)`` what the head multiplies."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
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

    def hidden(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Last hidden states after the final LayerNorm; raises ValueError beyond ``block_size``."""
        T = tokens.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"tokens must be at most block_size = {self.config.block_size} long, got {T}: crop them")
        mask = self.window_mask(T, tokens.device)
        positions = self.wpe.weight[:T]
        if self.config.document_mask:
            starts = document_starts(tokens, self.config.vocab_size - 1)
            positions = self.wpe(torch.arange(T, device=tokens.device) - starts)
            mask = within_documents(starts, mask)
        x = self.drop(self.wte(tokens) + positions)
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position."""
        return F.linear(self.hidden(tokens), self.wte.weight)

    def window_mask(self, T: int, device: torch.device) -> Bool[Tensor, "T T"] | None:
        """True where position t (row) sees position s: t - window < s <= t; None when the whole context is seen."""
        window = self.config.attention_window
        if window is None or window >= T:
            return None
        distance = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
        return (distance >= 0) & (distance < window)


class Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: on the meta device a first draw loads 70 MB of torch, for a second and for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func in (Tensor.normal_, nn.init.normal_) else func(*args, **(kwargs or {}))


def document_starts(tokens: Int[Tensor, "B T"], end_of_text: int) -> Int[Tensor, "B T"]:
    """Where each position's document begins: at the start of the row, or behind the last end-of-text before it."""
    behind = F.pad(tokens[:, :-1] == end_of_text, (1, 0))
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(behind, places, 0).cummax(1).values


def within_documents(starts: Int[Tensor, "B T"], mask: Bool[Tensor, "T T"] | None) -> Bool[Tensor, "B 1 T T"]:
    """True where position t (row) sees position s: s <= t, both in one document, and in the window where there is one."""
    T = starts.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=starts.device).tril() if mask is None else mask
    return ((starts[:, :, None] == starts[:, None]) & causal)[:, None]
