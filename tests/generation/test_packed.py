"""The packed decoder: the same logits, or logits within what the rounding allows; its source goes on unmoved."""

import copy
from types import SimpleNamespace

import pytest
import torch

import gpt2_lightning.generation.packed as packed_module
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError, MachineError
from gpt2_lightning.generation.engine import continue_tokens
from gpt2_lightning.generation.packed import Int8Linear, PlainLinear, PrepackedLinear, pack
from gpt2_lightning.settings.generate import NUMBERS
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import KINDS, prompts_of, recomputed, small

WIDE = {"n_embd": 128, "n_head": 4, "block_size": 48, "vocab_size": 257, "init_std": 0.05}
BOUNDS = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.03}  # of the logits' spread


def some_tokens(rows: int = 4, length: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randint(257, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_float32_equals_the_plain_decoder(kind: dict) -> None:
    decoder = small(**kind)
    tokens = torch.tensor(prompts_of((12, 12, 12)))
    torch.testing.assert_close(pack(decoder)(tokens), decoder(tokens), atol=1e-5, rtol=0)
    texts = continue_tokens(pack(decoder), prompts_of((3, 9)), [20, 20], SamplerConfig(k=1), [0, 0])
    assert texts == [recomputed(decoder, p, 20)[0] for p in prompts_of((3, 9))]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_rounded_numbers_stay_near_the_exact_ones(numbers: str) -> None:
    decoder, tokens = small(**WIDE), some_tokens()
    exact, found = decoder(tokens).detach(), pack(decoder, numbers)(tokens)
    assert found.dtype == torch.float32
    error = float(((found - exact).pow(2).mean() / exact.var()).sqrt())
    assert error < BOUNDS[numbers]
    assert (error < 1e-6) is (numbers == "float32")  # and really is rounded


def test_each_product_is_of_the_numbers_asked_for() -> None:
    decoder = small(**WIDE)
    for numbers, dtype, kinds in (
        ("float32", torch.float32, (PrepackedLinear, PlainLinear)),
        ("bfloat16", torch.bfloat16, (PrepackedLinear, PlainLinear)),
        ("int8", torch.float32, (Int8Linear,)),
    ):
        packed = pack(decoder, numbers)
        maps = [
            packed.head_map,
            *(m for block in packed.h for m in (block.attn.c_attn, block.attn.c_proj, *block.mlp.children())),
        ]
        assert len(maps) == 9
        assert all(isinstance(m, kinds) for m in maps)
        assert packed.wte.weight.dtype == dtype
        assert not any(isinstance(m, torch.nn.Linear) for m in packed.modules())


@pytest.mark.parametrize("missing", ["_reorder_linear_weight", "_linear_pointwise"])
@pytest.mark.parametrize("numbers", ["float32", "bfloat16"])
def test_without_the_private_operators_the_plain_product_takes_their_place(
    monkeypatch: pytest.MonkeyPatch, missing: str, numbers: str
) -> None:
    names = {"_reorder_linear_weight", "_linear_pointwise"} - {missing}
    there = SimpleNamespace(**{name: getattr(torch.ops.mkldnn, name) for name in names})
    expected = pack(small(), numbers)(torch.tensor(prompts_of((12,))))
    monkeypatch.setattr(torch.ops, "mkldnn", there)
    packed = pack(small(), numbers)
    assert isinstance(packed.head_map, PlainLinear)
    assert not isinstance(packed.head_map, PrepackedLinear)
    found = packed(torch.tensor(prompts_of((12,))))
    torch.testing.assert_close(found, expected, atol=1e-5 if numbers == "float32" else 0.1, rtol=0)


def test_an_operator_that_refuses_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such layout here")

    monkeypatch.setattr(
        torch.ops,
        "mkldnn",
        SimpleNamespace(_reorder_linear_weight=refuse, _linear_pointwise=torch.ops.mkldnn._linear_pointwise),
    )
    assert type(pack(small()).head_map) is PlainLinear


def test_int8_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "quantized", SimpleNamespace())
    with pytest.raises(MachineError, match=r"numbers = int8\): is not supported here: .* Set numbers=bfloat16"):
        pack(small(), "int8")


def test_other_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of float32, bfloat16, int8"):
        pack(small(), "int4")
    assert packed_module.NUMBERS == NUMBERS


@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_rows_logits_do_not_depend_on_the_other_rows(numbers: str) -> None:
    packed, tokens = pack(small(**WIDE), numbers), some_tokens()
    alone = torch.cat([packed(row[None]) for row in tokens])
    loud = packed(torch.cat([tokens, torch.full((3, 40), 7)]))[:4]
    bound = 1e-5 if numbers == "float32" else 0.02
    torch.testing.assert_close(packed(tokens), alone, atol=bound, rtol=0)
    torch.testing.assert_close(loud, alone, atol=bound, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_product_of_a_row_is_exact_in_any_company(bias: bool) -> None:
    torch.manual_seed(0)
    linear = Int8Linear(torch.randn(48, 64), torch.randn(48) if bias else None)
    x = torch.randn(16, 64) * torch.logspace(-6, 6, 16)[:, None]
    x[3] = 0
    alone = torch.cat([linear(row[None]) for row in x])
    assert torch.equal(linear(x), alone)
    assert torch.equal(linear(x.view(4, 4, 64)).view(16, 48), alone)
    assert alone.isfinite().all()


def test_int8_rounds_by_output_and_by_row_and_sums_exactly() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 64) * torch.logspace(-3, 3, 40)[:, None], torch.randn(40)
    x = torch.randn(8, 64) * torch.logspace(-3, 3, 8)[:, None]
    linear = Int8Linear(weight, bias)
    by_output, by_row = weight.abs().amax(1) / 127, x.abs().amax(1, keepdim=True) / linear.largest
    sums = (x / by_row).round().double() @ (weight / by_output[:, None]).round().double().T
    expected = sums * by_output.double() * by_row.double() + bias.double()
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert linear.largest in (63, 127)


def test_where_sums_of_two_products_have_16_bits_an_activation_has_7(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, largest in (({"avx512_vnni"}, 127), (set(), 63)):
        monkeypatch.setattr(packed_module, "processor_flags", lambda flags=flags: flags)
        torch.manual_seed(0)
        linear, x = Int8Linear(torch.eye(64), None), torch.randn(8, 64)
        assert linear.largest == largest
        step = x.abs().amax(1, keepdim=True) / largest
        assert ((linear(x) - x).abs() <= 0.51 * step).all()


def test_the_largest_sums_do_not_overflow() -> None:
    weight = torch.tensor([[1.0] * 512, [-1.0] * 512])
    for sign in (1.0, -1.0):
        found = Int8Linear(weight, None)(torch.full((3, 512), sign))
        torch.testing.assert_close(found, torch.tensor([[512.0 * sign, -512.0 * sign]] * 3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_packing_leaves_the_decoder_as_it_was_and_training_goes_on(numbers: str) -> None:
    decoder = small(dropout=0.5).train()
    before, tokens = copy.deepcopy(decoder.state_dict()), torch.tensor(prompts_of((12,)))
    packed = pack(decoder, numbers)
    first = packed(tokens)
    assert decoder.training
    assert not packed.training
    assert torch.equal(first, packed(tokens))  # no dropout
    assert list(decoder.state_dict()) == list(before)
    assert all(torch.equal(a, b) for a, b in zip(decoder.state_dict().values(), before.values(), strict=True))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in decoder.parameters())
    assert not any(p.requires_grad for p in packed.parameters())
    assert type(decoder) is Decoder
    optimizer = torch.optim.SGD(decoder.parameters(), 0.1)
    decoder(tokens).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    optimizer.step()
    assert not torch.equal(pack(decoder, numbers)(tokens), first)


def test_a_decoder_of_other_numbers_can_be_packed() -> None:
    tokens = torch.tensor(prompts_of((12,)))
    for dtype in (torch.bfloat16, torch.float64):
        assert pack(small().to(dtype))(tokens).dtype == torch.float32
