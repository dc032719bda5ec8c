"""What is measured: counts and times in, the named numbers out.

One number: 6 FLOP a parameter and token, three matrix products of two operations each (Kaplan et al. 2020); attention adds
12 * n_layer * n_embd * T (Chowdhery et al. 2022, appendix B), counted whole though the causal half is never computed.
"""

import math
from collections.abc import Mapping

import numpy as np

from gpt2_lightning.settings.decoder import DecoderConfig

__all__ = ["bits_per_byte", "device_peak_flops", "flops_per_token", "perplexity", "unigram_nats"]

PEAK_FLOPS: Mapping[str, float] = {  # dense bf16 matrix products, from the makers' data sheets; the first match counts
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def perplexity(cross_entropy: float) -> float:
    """exp of the cross-entropy in nats; infinite where that overflows."""
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """The code length of a text in bits, over its length in bytes: comparable between tokenizers."""
    return nats / math.log(2) / n_bytes if n_bytes else math.nan


def unigram_nats(train_tokens: np.ndarray, tokens: np.ndarray, vocab_size: int) -> float:
    """The code length of ``tokens`` in nats when each is predicted by its share of ``train_tokens``, all counts plus one."""
    counts = np.bincount(train_tokens.ravel(), minlength=vocab_size) + 1
    return float(-np.log(counts / counts.sum())[tokens].sum())


def flops_per_token(config: DecoderConfig, n_parameters: int) -> float:
    """Operations of a training step per token; ``n_parameters`` counts the head once, the position table multiplies nothing."""
    matrices = n_parameters - config.block_size * config.n_embd
    return 6 * matrices + 12 * config.n_layer * config.n_embd * config.block_size


def device_peak_flops(name: str) -> float | None:
    """The device's peak by its name, or None where it is not known: then no utilisation is reported."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
