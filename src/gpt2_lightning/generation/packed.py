"""A decoder made ready for generation: the same weights in, laid out or rounded for products with few rows, logits out.

One number: 4, the rows below which a packed float32 product is no faster: with few rows it only reads the weights, and
their layout decides how fast it can.
Choices not taken: torch.compile with freezing, which packs too, after a minute of compiling; and rounding the rows of
a batch by one common scale, which makes each row's text depend on its neighbours.
The packing operators are torch's own, but private: where one is missing or refuses, the plain product takes its place.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2_lightning.decoder import Decoder, Undrawn
from gpt2_lightning.errors import ConfigError, MachineError, first_line
from gpt2_lightning.processor import processor_flags
from gpt2_lightning.settings.generate import NUMBERS

__all__ = ["PackedDecoder", "pack"]

INT8, INT7 = 127, 63
LEAST_ROWS = {torch.float32: 4, torch.bfloat16: 8}


class PlainLinear(nn.Module):
    """``x @ weight.T + bias`` as torch does it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return F.linear(x, self.weight, self.bias)


class PrepackedLinear(PlainLinear):
    """The same with the weight laid out once as oneDNN wants it; raises AttributeError or RuntimeError where it cannot.

    Fewer than ``least_rows`` rows are slower than as many: they are filled up with zeros.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight), bias)
        self.product = torch.ops.mkldnn._linear_pointwise
        self.least_rows = LEAST_ROWS[weight.dtype]

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        rows = x.numel() // x.shape[-1]
        if rows >= self.least_rows:
            return self.product(x, self.weight, self.bias, "none", [], "")
        more = F.pad(x.reshape(rows, -1), (0, 0, 0, self.least_rows - rows))
        return self.product(more, self.weight, self.bias, "none", [], "")[:rows].view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """Weights rounded to 8 bits by output, activations by row as they come; sums are exact integers.

    Without VNNI the sums of two 8-bit products overflow their 16 bits: activations get 7 bits there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scales = weight.abs().amax(1).clamp(min=1e-12) / INT8
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are to go from torch; the products are not
            rounded = torch.quantize_per_channel(
                weight, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8
            )
            self.weight = torch.ops.quantized.linear_prepack(rounded, None)
        self.product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        self.bias = bias
        self.largest = INT8 if "avx512_vnni" in processor_flags() else INT7

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        scales = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-12).div_(self.largest)
        y = self.product(x / scales, 1.0, self.largest + 1, self.weight)
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)


class PackedDecoder(Decoder):
    """A Decoder for inference alone: its linear maps and its head are packed, the rest is shared with the one it is made of."""

    head_map: nn.Module

    def head(self, hidden: Float[Tensor, "*B C"]) -> Float[Tensor, "*B V"]:
        """Logits in float32."""
        return self.head_map(hidden).float()


@torch.no_grad()
def pack(decoder: Decoder, numbers: str = "float32") -> PackedDecoder:
    """The decoder ready for generation; ``numbers`` are those of its products: float32 (exact), bfloat16 or int8.

    Later changes of the decoder's weights need not reach it. Raises ConfigError for other numbers, MachineError for int8 where
    the device or this torch has no product for it.
    """
    if numbers not in NUMBERS:
        raise ConfigError("numbers", key="numbers", value=numbers, rule=f"must be one of {', '.join(NUMBERS)}")
    if numbers == "int8" and decoder.wte.weight.is_cuda:
        remedy = "Set numbers=bfloat16, or accelerator=cpu"
        raise MachineError("numbers", key="numbers", value=numbers, rule="is for the CPU", remedy=remedy)
    dtype = torch.bfloat16 if numbers == "bfloat16" else torch.float32
    with torch.device("meta"), Undrawn():
        packed = PackedDecoder(decoder.config)
    weights = {name: p.detach().to(dtype) for name, p in decoder.named_parameters()}
    packed.load_state_dict(weights, assign=True)
    for module in list(packed.modules()):
        for name, linear in module.named_children():
            if isinstance(linear, nn.Linear):
                setattr(module, name, pack_linear(linear.weight, linear.bias, numbers))
    packed.head_map = pack_linear(packed.wte.weight, None, numbers)
    return packed.eval().requires_grad_(False)


def pack_linear(weight: Tensor, bias: Tensor | None, numbers: str) -> nn.Module:
    """One linear map, by the fastest way that this torch and this device have."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    try:
        if numbers == "int8":
            return Int8Linear(weight, bias)
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            return PrepackedLinear(weight, bias)
    except (AttributeError, RuntimeError) as error:
        if numbers == "int8":
            rule = f"is not supported here: {first_line(error)}"
            raise MachineError("numbers", key="numbers", value=numbers, rule=rule, remedy="Set numbers=bfloat16") from error
    return PlainLinear(weight, bias)
