"""GPT-2's weights in a folder as transformers keeps it: settings and tensors out of one, and into one.

In: ``config.json`` beside ``model.safetensors``, or its shards and their index, or the same as ``pytorch_model.bin``.
Out: a DecoderConfig, and tensors under our names: theirs without ``transformer.``, linear maps turned to ``[out, in]``.
One number: 1.06, the peak of memory while GPT-2's 124M are read, over the weights themselves.
Choice not taken: mapping the file into memory. Its pages count beside the copies until it is closed, and a file that is cut
short meanwhile kills the process instead of raising.
"""

import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_lightning.errors import CheckpointError, ConfigError, OutputError
from gpt2_lightning.settings.decoder import DecoderConfig

__all__ = [
    "checked", "read_config", "read_weights", "reading", "refusal", "require_finite", "stored_shapes", "turned",
    "write_weights",
]  # fmt: skip

WHAT = "GPT-2 weights"
FIELDS = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "n_positions", "vocab_size": "vocab_size",
          "dropout": "resid_pdrop", "init_std": "initializer_range"}  # fmt: skip
ABSENT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "initializer_range": 0.02}  # what transformers takes then
FIXED: dict[str, tuple[Any, ...]] = {  # what our decoder computes; the first is written, and stands where the key is absent
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "tie_word_embeddings": (True,),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Reader = Callable[[list[int], torch.dtype | None], Tensor]


def read_weights(folder: str | Path, dtype: torch.dtype) -> tuple[DecoderConfig, dict[str, Float[Tensor, "..."]]]:
    """A folder's settings, and its tensors in ``dtype`` by our names. Runs nothing it reads; raises CheckpointError."""
    place = find_folder(folder)
    config, readers = read_config(place / "config.json"), tensor_readers(place)
    head = readers.pop("lm_head.weight", None)
    if head:
        readers.setdefault("wte.weight", head)
    shapes = {}
    for name, shape in stored_shapes(config):
        if name not in readers:
            raise refusal(place, f"lacks {name}")
        shapes[name] = shape
    for name in readers:
        if name not in shapes:
            raise refusal(place, f"holds {name!r}, which GPT-2 of this size has not")
    wte = shapes["wte.weight"], None
    if head and not torch.equal(head(*wte), readers["wte.weight"](*wte)):
        raise refusal(place, "holds an lm_head.weight that differs from wte.weight: our head is wte itself")
    del head  # it may hold its tensor
    return config, {name: readers.pop(name)(shape, dtype) for name, shape in shapes.items()}


def write_weights(folder: str | Path, config: DecoderConfig, tensors: dict[str, Float[Tensor, "..."]]) -> None:
    """Make a folder that transformers' AutoModelForCausalLM loads; raises ConfigError, OutputError.

    ``document_mask`` is left out: it makes no difference to a text without end-of-text in it.
    """
    if config.norm != "pre":
        raise config.refuse("norm", "must be pre: GPT-2 has no other")
    if (config.attention_window or config.block_size) < config.block_size:
        raise config.refuse("attention_window", "must be none: GPT-2 attends to the whole context")
    last, rate = config.vocab_size - 1, config.dropout  # the last token is end-of-text
    settings = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "bos_token_id": last, "eos_token_id": last}
    settings |= {key: allowed[0] for key, allowed in FIXED.items()} | {"embd_pdrop": rate, "attn_pdrop": rate}
    settings |= {key: getattr(config, ours) for ours, key in FIELDS.items()}
    theirs = {f"transformer.{name}": turned(name, tensor).contiguous() for name, tensor in tensors.items()}
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        save_file(theirs, place / "model.safetensors", {"format": "pt"})  # beside the target, then renamed
        (place / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (place / "model.safetensors").chmod((place / "config.json").stat().st_mode)  # else for its owner alone
    except (OSError, SafetensorError) as error:
        raise OutputError(WHAT, key="folder", value=str(place), rule=f"cannot be written: {error}") from error


def find_folder(name: str | Path) -> Path:
    """The folder of that name on disk."""
    with suppress(OSError):
        if Path(name).is_dir():
            return Path(name)
    raise refusal(name, "is no folder on disk, and names on the hub are not looked up", "Download it and give its folder")


def read_config(path: Path) -> DecoderConfig:
    """The settings in a ``config.json``, if our decoder computes what they ask for."""
    raw = ABSENT | read_json(path)
    if raw.get("model_type") != "gpt2":
        raise CheckpointError(str(path), key="model_type", value=json.dumps(raw.get("model_type")), rule='must be "gpt2"')
    values: dict[str, Any] = {}
    value: Any
    for ours, key in FIELDS.items():
        kind, value = type(getattr(DecoderConfig(), ours)), raw.get(key)
        if type(value) not in {int, kind} or abs(value) >= 2**63:
            raise CheckpointError(str(path), key=key, value=json.dumps(value), rule=f"must be a number ({kind.__name__})")
        values[ours] = kind(value)
    try:
        config = DecoderConfig(**values)
    except ConfigError as error:
        key = FIELDS[str(error.key).removeprefix("model.")]
        raise CheckpointError(str(path), key=key, value=error.value, rule=error.rule) from error
    for key, allowed in (FIXED | {"n_inner": (None, 4 * config.n_embd)}).items():
        if raw.get(key, allowed[0]) not in allowed:
            rule = "must be " + " or ".join(map(json.dumps, allowed))
            raise CheckpointError(str(path), key=key, value=json.dumps(raw[key]), rule=rule)
    if not raw["embd_pdrop"] == raw["attn_pdrop"] == raw["resid_pdrop"]:
        warnings.warn(f"{path}: embd_pdrop and attn_pdrop differ from resid_pdrop, which is taken for them too", stacklevel=2)
    return config


def stored_shapes(config: DecoderConfig) -> Iterator[tuple[str, list[int]]]:
    """Our name and the stored shape of every tensor of a GPT-2; an endless one is asked for no further than it is there."""
    C = config.n_embd
    block = {"ln_1": [C], "attn.c_attn": [C, 3 * C], "attn.c_proj": [C, C],
             "ln_2": [C], "mlp.c_fc": [C, 4 * C], "mlp.c_proj": [4 * C, C]}  # fmt: skip
    yield from {"wte.weight": [config.vocab_size, C], "wpe.weight": [config.block_size, C]}.items()
    yield from {"ln_f.weight": [C], "ln_f.bias": [C]}.items()
    for i in range(config.n_layer):
        for name, shape in block.items():
            yield from {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}.items()


def turned(name: str, tensor: Tensor) -> Tensor:
    """Linear maps the other way around, from theirs to ours and from ours to theirs."""
    return tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def tensor_readers(folder: Path) -> dict[str, Reader]:
    """What reads each stored tensor, by our name; causal masks, which old files hold too, are left out."""
    readers: dict[str, Reader] = {}
    for path in weight_files(folder):
        for full, get in open_file(path).items():
            name = full.removeprefix("transformer.")
            if name in readers:
                raise refusal(path, f"holds {name!r}, which is there already")
            if not name.endswith((".attn.bias", ".attn.masked_bias")):
                readers[name] = partial(read_tensor, path, full, get)
    return readers


def weight_files(folder: Path) -> list[Path]:
    """The files of the first layout that the folder has, in transformers' order."""
    for path in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        index = path.with_name(f"{path.name}.index.json")
        if path.exists():
            return [path]
        if index.exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
                raise refusal(index, "must map tensors to files beside it")
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise refusal(folder, "has neither model.safetensors nor pytorch_model.bin, whole or in shards")


def open_file(path: Path) -> dict[str, Callable[[], Any]]:
    """What gets each entry of a file, by its name there."""
    with reading(path):
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt", backend="pread")
            return {name: partial(file.get_tensor, name) for name in file.offset_keys()}
        table = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(table, dict):
            raise TypeError("it holds no table of tensors")
        return {str(name): partial([entry].__getitem__, 0) for name, entry in table.items()}  # each holds its entry alone


def read_tensor(path: Path, name: str, get: Callable[[], Any], shape: list[int], dtype: torch.dtype | None) -> Tensor:
    """A stored tensor as our decoder holds it."""
    with reading(path):
        stored = get()
    tensor = turned(name, checked(path, name, stored, shape)).contiguous().to(dtype or stored.dtype)
    require_finite(path, name, tensor)
    return tensor


def checked(path: Path, name: str, stored: Any, shape: list[int]) -> Tensor:
    """What a file holds under a name, if it is a tensor of numbers of that shape; raises CheckpointError."""
    if not isinstance(stored, Tensor) or stored.dtype not in DTYPES or stored.layout != torch.strided or stored.is_meta:
        rule = "must be a dense tensor of " + ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise CheckpointError(str(path), key=name, value=getattr(stored, "dtype", type(stored).__name__), rule=rule)
    if list(stored.shape) != shape:
        raise CheckpointError(str(path), key=name, value=list(stored.shape), rule=f"must have the shape {shape}")
    return stored


def require_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where one of the numbers is none."""
    low, high = tensor.aminmax()
    if not -math.inf < low <= high < math.inf:
        raise CheckpointError(str(path), key=name, rule=f"must be finite as {tensor.dtype}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    with reading(path):
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise TypeError("it holds no JSON object")
        return raw


def refusal(path: str | Path, rule: str, remedy: str = "") -> CheckpointError:
    """The error about a file or a folder, to be raised by the caller."""
    return CheckpointError(WHAT, key="path", value=str(path), rule=rule, remedy=remedy)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a CheckpointError: in a damaged one, a parser may meet anything."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        yield
    except pickle.UnpicklingError as error:  # its own text advises to load it unsafely
        raise refusal(path, "is damaged, or holds more than tensors: nothing in it was run") from error
    except Exception as error:
        raise refusal(path, f"cannot be read: {str(error).partition('. ')[0] or type(error).__name__}") from error
