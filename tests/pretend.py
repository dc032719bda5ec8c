"""A GPU that is not there: tensors that say ``cuda`` and are computed on the CPU, and that refuse what a GPU would refuse.

``pretend()`` makes torch see one GPU from there on, in this process: a fork of a test is the place for it. What it shows is
where tensors are: an operation on tensors of two devices raises RuntimeError, as it does there. Kernels, autocast, streams,
graphs, memory and times are not the GPU's.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
WITH_SCALARS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}  # and all that is done element by element
READ = {Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__}


class Pretended(Tensor):
    """A tensor of the GPU; ``held`` computes. To torch's C++ it is on ``meta``, a device that needs no driver."""

    held: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        own = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=torch.device("meta"))
        own.held = held
        return own

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"pretended {self.held!r}"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if func is aten.copy_.default:
            unwrapped(args[0]).copy_(unwrapped(args[1]))
            return args[0]
        check(func, args, kwargs)
        here = {name: value for name, value in kwargs.items() if name != "pin_memory"} | ({} if to is None else {"device": CPU})
        out = func(*tree_map(unwrapped, args), **tree_map(unwrapped, here))
        if to is not None and torch.device(to).type == "cpu":
            return out
        return return_and_correct_aliasing(func, args, kwargs, tree_map(wrapped, out))


class Made(TorchDispatchMode):
    """What is made on the GPU, or moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        kind = kwargs.get("device") and torch.device(kwargs["device"]).type
        if kind != "cuda" and (kind != "meta" or Named.of_meta):
            return func(*args, **kwargs)
        check(func, args, {})
        out = func(*tree_map(unwrapped, args), **kwargs | {"device": CPU})
        return tree_map(lambda t: Pretended(t.clone() if any(t is a for a in tree_leaves(args)) else t), out)


class Named(TorchFunctionMode):
    """``cuda`` is ``cuda:0``; what has to be seen is read."""

    of_meta = False  # asked for by name, and not by torch's C++ for more of what it has been given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Named.of_meta = (kwargs or {}).get("device") == torch.device("meta")
        if func in READ and isinstance(args[0], Pretended):
            return func(args[0].held)
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and isinstance(args[1], tuple):  # C++ would make a tensor of a list on meta
            args = args[0], tuple(torch.tensor(part) if isinstance(part, list) else part for part in args[1])
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and "device" in (kwargs or {}):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.pin_memory, Tensor.record_stream):
            return args[0]
        return func(*tree_map(numbered, args), **tree_map(numbered, kwargs or {}))


class NoGradient:
    """In the place of inference mode, whose tensors cannot be wrapped."""

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, *_: Any) -> None:
        torch.set_grad_enabled(self.before)


def check(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse tensors of two devices; into what is done element by element a scalar may come from the CPU."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    others = [t for t in tensors if not isinstance(t, Pretended)]
    if len(others) == len(tensors) or func is aten._to_copy.default:
        return
    if func in INDEXED and isinstance(args[0], Pretended):
        others = [t for t in others if t.ndim and len(args) > 2 and t is args[2]]
    elif torch.Tag.pointwise in func.tags or func in WITH_SCALARS:
        others = [t for t in others if t.ndim]
    if others:
        print("TENSORS", [(type(t).__name__, tuple(t.shape), t.device, t.dtype) for t in tensors])
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two, cuda:0 and cpu")


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool) -> Tensor:
    """torch's own would make its mask in C++, where the device is meta."""
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril() if is_causal else attn_mask
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def wrapped(value: Any) -> Any:
    return Pretended(value) if isinstance(value, Tensor) and not isinstance(value, Pretended) else value


def numbered(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CUDA if value.type == "cuda" else value
    return CUDA if isinstance(value, str) and value.startswith("cuda") else value


def pretend() -> None:
    """Have one GPU."""
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, wait=lambda *_: None)
    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    said = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "is_bf16_supported": False,
        "get_device_name": "pretended", "max_memory_allocated": 0, "memory_allocated": 0, "memory_stats": {},
        "get_device_capability": (9, 0), "current_stream": stream, "Stream": stream, "Event": event, "empty_cache": None,
        "synchronize": None, "set_device": None, "reset_peak_memory_stats": None, "manual_seed_all": None, "_lazy_init": None,
        "get_device_properties": SimpleNamespace(name="pretended", total_memory=2**36, major=9, minor=0),
    }  # fmt: skip
    for name, value in said.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.device = torch.cuda.stream = lambda *_: nullcontext()
    torch.inference_mode.__enter__, torch.inference_mode.__exit__ = NoGradient.__enter__, NoGradient.__exit__
    torch.__future__.set_swap_module_params_on_conversion(True)  # else a parameter would be another one when it is moved
    Made().__enter__()
    Named().__enter__()
