"""nanoGPT's checkpoint: its ``ckpt.pt`` in, a DecoderConfig and tensors by our names out.

The file is a pickle of the model, the optimizer's two moments and the settings; only tensors and plain data are read of it, and
nothing in it is run. Linear maps lie as ours do. A model without biases gets biases of zero, which computes the same; a
vocabulary that was filled up to a multiple of 64 loses the words that no text has.
One number: 50,304, the vocabulary that nanoGPT trains with where GPT-2's has 50,257 words.
Choice not taken: reading the file whole. It is mapped, for two thirds of it are the optimizer's and not wanted, and the pages
of each tensor are given back once it is copied.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gpt2_lightning.errors import CheckpointError, ConfigError
from gpt2_lightning.settings.data import TOKENIZERS
from gpt2_lightning.settings.decoder import DecoderConfig
from gpt2_lightning.weights import checked, reading, refusal, require_finite, stored_shapes, turned

__all__ = ["read_nanogpt", "read_nanogpt_config"]

FIELDS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MADV_DONTNEED = 4  # sys/mman.h; only Linux drops the pages at once
FILLED = -(-TOKENIZERS["gpt2"] // 64) * 64


def read_nanogpt_config(path: Path) -> DecoderConfig:
    """The settings in the file, without the words that only fill the vocabulary up; raises CheckpointError."""
    return without_filling(settings(path, open_checkpoint(path)))


def read_nanogpt(path: Path, dtype: torch.dtype) -> tuple[DecoderConfig, dict[str, Float[Tensor, "..."]]]:
    """The file's settings, and its tensors in ``dtype`` by our names. Runs nothing it reads; raises CheckpointError."""
    table = open_checkpoint(path)
    config = settings(path, table)
    stored = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in table["model"].items()}
    stored = {name.removeprefix("transformer."): tensor for name, tensor in stored.items() if not name.endswith(".attn.bias")}
    head, words = stored.pop("lm_head.weight", None), without_filling(config).vocab_size
    tensors = {}
    for name, tensor in ours(path, config, stored):
        if name == "wte.weight":
            require_tied(path, head, tensor)
        tensors[name] = tensor[: words if name == "wte.weight" else None].to(dtype, copy=True)
        require_finite(path, name, tensors[name])
        if name in stored:
            forget(tensor)
    return without_filling(config), tensors


def require_tied(path: Path, head: Any, wte: Tensor) -> None:
    """Raise CheckpointError where the head, if there is one, is not wte."""
    if head is None:
        return
    if checked(path, "lm_head.weight", head, [*wte.shape]).data_ptr() != wte.data_ptr() and not torch.equal(head, wte):
        raise refusal(path, "holds an lm_head.weight that differs from wte.weight: our head is wte itself")
    forget(head)


def forget(mapped: Tensor) -> None:
    """Give back the pages of a tensor in a mapped file, which are read again if they are needed, where the system can.

    By its storage, which lies within the file whatever shape and strides the file claims.
    """
    storage = mapped.untyped_storage()
    start, end = storage.data_ptr() // PAGESIZE * PAGESIZE, storage.data_ptr() + storage.nbytes()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The table in the file, if it has the two parts that are wanted."""
    with reading(path):
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for part in ("model", "model_args"):
        if not isinstance(table, dict) or not isinstance(table.get(part), dict):
            raise refusal(path, f"is no checkpoint of nanoGPT: it has no {part}")
    return table


def settings(path: Path, table: dict[str, Any]) -> DecoderConfig:
    """The shape in ``model_args``; a run has a dropout of its own."""
    values = {name: table["model_args"].get(name) for name in FIELDS}
    for name, value in values.items():
        if type(value) is not int or abs(value) >= 2**63:
            raise CheckpointError(str(path), key=name, value=value, rule="must be an integer")
    try:
        return DecoderConfig(**values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(str(path), key=error.key, value=error.value, rule=error.rule) from error


def ours(path: Path, config: DecoderConfig, stored: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the decoder; biases are all there or none is."""
    biased = any(name.endswith(".bias") for name in stored)
    wanted = set()
    for name, shape in stored_shapes(config):
        wanted.add(name)
        size = list(turned(name, torch.empty(shape, device="meta")).shape)
        if name in stored:
            yield name, checked(path, name, stored[name], size)
        elif name.endswith(".bias") and not biased:
            yield name, torch.zeros(size)
        else:
            raise refusal(path, f"lacks {name}")
    for name in stored:
        if name not in wanted:
            raise refusal(path, f"holds {name!r}, which GPT-2 of this size has not")


def without_filling(config: DecoderConfig) -> DecoderConfig:
    """The settings with GPT-2's vocabulary where it was filled up."""
    words = TOKENIZERS["gpt2"] if config.vocab_size == FILLED else config.vocab_size
    return DecoderConfig(**{name: getattr(config, name) for name in FIELDS} | {"vocab_size": words})
