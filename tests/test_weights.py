"""GPT-2 folders of transformers: the same logits in and out, and one line for whatever is wrong with them."""

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import CheckpointError, ConfigError, OutputError
from gpt2_lightning.weights import read_config, stored_shapes, turned

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 24, "vocab_size": 101}
SHAPES = [
    TINY,
    TINY | {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 1, "vocab_size": 2},
    TINY | {"n_layer": 3, "n_head": 4, "n_embd": 60, "n_positions": 48, "vocab_size": 257},
]
PUBLISHED = [  # layers, heads, width, parameters
    (12, 12, 768, 124_439_808),
    (24, 16, 1024, 354_823_168),
    (36, 20, 1280, 774_030_080),
    (48, 25, 1600, 1_557_611_200),
]
State = dict[str, Any]


def reference(**options: Any) -> transformers.GPT2LMHeadModel:
    """Theirs, drawn at random, with biases and norms away from 0 and 1."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**TINY | {"bos_token_id": None, "eos_token_id": None} | options)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    vocab_size, block_size = (
        (model.config.vocab_size, model.config.block_size)
        if isinstance(model, Decoder)
        else (model.config.vocab_size, model.config.n_positions)
    )
    tokens = torch.randint(0, vocab_size, (2, block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(tokens)
    return found if isinstance(model, Decoder) else found.logits


def assert_same(ours: Decoder, theirs: transformers.GPT2LMHeadModel) -> None:
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[State], State | None]) -> None:
    state = load_file(folder / "model.safetensors")
    state = change(state) or state
    save_file(state, folder / "model.safetensors")


def as_bin(folder: Path, change: Callable[[State], Any] = lambda state: state, **options: Any) -> Path:
    """The folder with a pytorch_model.bin in place of its safetensors."""
    state = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder


def message(folder: Path) -> str:
    """The one line that loading the folder ends with, the folder's own path shortened."""
    with pytest.raises(CheckpointError) as caught:
        Decoder.from_pretrained(folder)
    assert caught.value.status == 4
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "theirs"
    reference().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A good folder of theirs, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "theirs")


@pytest.mark.parametrize("shape", SHAPES)
def test_what_transformers_wrote_gives_its_logits(shape: dict, tmp_path: Path) -> None:
    theirs = reference(**shape)
    theirs.save_pretrained(tmp_path)
    ours = Decoder.from_pretrained(tmp_path)
    assert_same(ours, theirs)
    assert not ours.training
    assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_what_we_wrote_gives_transformers_our_logits(shape: dict, tmp_path: Path) -> None:
    theirs = reference(**shape)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Decoder.from_pretrained(str(tmp_path / "theirs"))
    ours.save_pretrained(str(tmp_path / "new" / "ours"))
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(again), logits(theirs))
    assert torch.equal(logits(Decoder.from_pretrained(tmp_path / "new" / "ours")), logits(ours))


@pytest.mark.slow
def test_124m_goes_both_ways(tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100MB")
    ours = Decoder.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tokens = torch.randint(0, 50257, (1, 64))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(again(tokens).logits, ours(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_every_accepted_activation_is_ours(activation: str, tmp_path: Path) -> None:
    theirs = reference(activation_function=activation)
    with torch.no_grad():
        for block in theirs.transformer.h:
            block.mlp.c_fc.weight.mul_(20)  # where gelu_new and gelu part
    theirs.save_pretrained(tmp_path)
    assert_same(Decoder.from_pretrained(tmp_path), theirs)


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    theirs = reference()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(Decoder.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_older_format_reads_the_same(folder: Path, prefix: str, zipped: bool) -> None:
    def old(state: State) -> State:
        state = {name.replace("transformer.", prefix): torch.nn.Parameter(t, requires_grad=zipped) for name, t in state.items()}
        masks = {f"{prefix}h.0.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.uint8)}
        return state | masks | {"lm_head.weight": state[f"{prefix}wte.weight"]}

    ours = Decoder.from_pretrained(as_bin(folder, old, _use_new_zipfile_serialization=zipped))
    assert_same(ours, reference())
    assert all(p.requires_grad for p in ours.parameters())


def test_older_shards_read_the_same(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = dict(list(state.items())[::2]), dict(list(state.items())[1::2])
    for name, part in zip("ab", half, strict=True):
        torch.save(part, folder / f"{name}.bin")
    index = {name: shard for shard, part in zip(("a.bin", "b.bin"), half, strict=True) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same(Decoder.from_pretrained(folder), reference())


def unprefixed(state: State) -> State:
    return {name.removeprefix("transformer."): t for name, t in state.items()}


def with_masks(state: State) -> State:
    masks = {"attn.bias": torch.ones(24, 24, dtype=torch.bool), "attn.masked_bias": torch.tensor(-1e4)}
    return state | {f"transformer.h.{i}.{name}": t.clone() for i in range(2) for name, t in masks.items()}


def with_head(state: State) -> State:
    return state | {"lm_head.weight": state["transformer.wte.weight"].clone()}


def with_head_alone(state: State) -> State:
    return state | {"lm_head.weight": state.pop("transformer.wte.weight")}


@pytest.mark.parametrize("change", [unprefixed, with_masks, with_head, with_head_alone])
def test_other_spellings_of_the_same_weights_read_the_same(change: Callable, folder: Path) -> None:
    edit_tensors(folder, change)
    assert_same(Decoder.from_pretrained(folder), reference())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_other_precisions_are_converted(stored: torch.dtype, asked: torch.dtype, folder: Path) -> None:
    before = load_file(folder / "model.safetensors")
    edit_tensors(folder, lambda state: {name: t.to(stored) for name, t in state.items()})
    ours = Decoder.from_pretrained(folder) if asked == torch.float32 else Decoder.from_pretrained(folder, asked)
    for name, p in ours.named_parameters():
        assert torch.equal(p, turned(name, before[f"transformer.{name}"].to(stored)).to(asked))


def test_a_precision_is_kept_when_written(folder: Path, tmp_path: Path) -> None:
    Decoder.from_pretrained(folder, torch.bfloat16).save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16


def test_the_settings_are_kept(tmp_path: Path) -> None:
    options = {"resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.25, "initializer_range": 0.01, "n_inner": 128}
    reference(**options).save_pretrained(tmp_path / "theirs")
    ours = Decoder.from_pretrained(tmp_path / "theirs")
    assert ours.config == DecoderConfig(
        n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=101, dropout=0.25, init_std=0.01
    )
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert (theirs.resid_pdrop, theirs.embd_pdrop, theirs.attn_pdrop, theirs.initializer_range) == (0.25, 0.25, 0.25, 0.01)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.architectures) == (100, 100, ["GPT2LMHeadModel"])
    assert Decoder.from_pretrained(tmp_path / "ours").config == ours.config


def test_rates_that_are_absent_are_those_of_transformers(folder: Path) -> None:
    edit_config(folder, resid_pdrop=..., embd_pdrop=..., attn_pdrop=..., initializer_range=..., activation_function=...)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    ours = Decoder.from_pretrained(folder).config
    assert (ours.dropout, ours.init_std) == (theirs.resid_pdrop, theirs.initializer_range) == (0.1, 0.02)


def test_dropout_rates_that_differ_are_said(folder: Path) -> None:
    edit_config(folder, attn_pdrop=0.0)
    with pytest.warns(UserWarning, match="embd_pdrop and attn_pdrop differ from resid_pdrop, which is taken for them too"):
        assert Decoder.from_pretrained(folder).config.dropout == 0.1


@pytest.mark.parametrize(("n_layer", "n_head", "n_embd", "count"), PUBLISHED)
def test_published_settings_have_the_published_sizes(
    n_layer: int, n_head: int, n_embd: int, count: int, tmp_path: Path
) -> None:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "activation_function": "gelu_new", **sizes}))
    config = read_config(tmp_path / "config.json")
    with torch.device("meta"):
        held = {name: list(turned(name, p).shape) for name, p in Decoder(config).named_parameters()}
    assert dict(stored_shapes(config)) == held
    assert sum(math.prod(shape) for shape in held.values()) == count


def test_the_head_is_written_once_under_the_names_of_transformers(folder: Path, tmp_path: Path) -> None:
    before = load_file(folder / "model.safetensors")
    Decoder.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(tmp_path / "ours" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_is_written_is_for_whom_other_files_are_and_leaves_nothing_beside(folder: Path) -> None:
    Decoder.from_pretrained(folder).save_pretrained(folder)
    other = folder / "other"
    other.touch()
    assert (folder / "model.safetensors").stat().st_mode == other.stat().st_mode
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", "model.safetensors", "other"}


def test_loading_draws_no_random_number(folder: Path) -> None:
    before = torch.get_rng_state()
    Decoder.from_pretrained(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_a_file_replaced_after_loading_changes_nothing(folder: Path) -> None:
    ours = Decoder.from_pretrained(folder)
    before = logits(ours)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(logits(ours), before)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama"}, '(model_type = "llama"): must be "gpt2"'),
        ({"model_type": ...}, '(model_type = null): must be "gpt2"'),
        ({"activation_function": "relu"},
         '(activation_function = "relu"): must be "gelu_new" or "gelu_pytorch_tanh" or "gelu_fast"'),
        ({"activation_function": "gelu"},
         '(activation_function = "gelu"): must be "gelu_new" or "gelu_pytorch_tanh" or "gelu_fast"'),
        ({"layer_norm_epsilon": 1e-6}, "(layer_norm_epsilon = 1e-06): must be 1e-05"),
        ({"scale_attn_weights": False}, "(scale_attn_weights = false): must be true"),
        ({"scale_attn_by_inverse_layer_idx": True}, "(scale_attn_by_inverse_layer_idx = true): must be false"),
        ({"reorder_and_upcast_attn": True}, "(reorder_and_upcast_attn = true): must be false"),
        ({"tie_word_embeddings": False}, "(tie_word_embeddings = false): must be true"),
        ({"n_inner": 100}, "(n_inner = 100): must be null or 128"),
        ({"n_layer": ...}, "(n_layer = null): must be a number (int)"),
        ({"n_layer": "2"}, '(n_layer = "2"): must be a number (int)'),
        ({"n_head": True}, "(n_head = true): must be a number (int)"),
        ({"n_embd": 32.0}, "(n_embd = 32.0): must be a number (int)"),
        ({"resid_pdrop": "0.1"}, '(resid_pdrop = "0.1"): must be a number (float)'),
        ({"resid_pdrop": 1}, "(resid_pdrop = 1.0): must be at least 0 and below 1"),
        ({"initializer_range": math.nan}, "(initializer_range = nan): must be finite"),
        ({"n_positions": 0}, "(n_positions = 0): must be at least 1"),
        ({"n_head": 3}, "(n_head = 3): must divide the width model.n_embd = 32"),
        ({"n_head": 10**12}, f"(n_head = {10**12}): must divide the width model.n_embd = 32"),
        ({"n_embd": 10**400}, f"(n_embd = {10**400}): must be a number (int)"),
    ],
)  # fmt: skip
def test_settings_that_are_not_ours_are_refused(changes: dict, expected: str, folder: Path) -> None:
    edit_config(folder, **changes)
    assert message(folder) == f"DIR/config.json {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"n_layer": 2', "Expecting ',' delimiter: line 1 column 14 (char 13)"),
        ("[1, 2]", "it holds no JSON object"),
        ("[" * 100_000, None),
        ("\udcff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_settings_that_are_no_json_are_refused(text: str, expected: str | None, folder: Path) -> None:
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    start = "GPT-2 weights (path = DIR/config.json): cannot be read: "
    assert message(folder) == start + expected if expected else message(folder).startswith(start)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: t for name, t in state.items() if name not in names}


def with_tensor(name: str, change: Callable[[State], Any]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state)}


LN, MAP = "transformer.h.1.ln_1.weight", "transformer.h.0.mlp.c_fc.weight"
NUMBERS = "must be a dense tensor of float32, float16, bfloat16, float64"
BAD_TENSORS = [
    (without(LN), "GPT-2 weights (path = DIR): lacks h.1.ln_1.weight"),
    (without("transformer.wte.weight"), "GPT-2 weights (path = DIR): lacks wte.weight"),
    (with_tensor("transformer.h.2.ln_1.weight", lambda state: torch.ones(32)),
     "GPT-2 weights (path = DIR): holds 'h.2.ln_1.weight', which GPT-2 of this size has not"),
    (with_tensor("score.weight", lambda state: torch.ones(2, 32)),
     "GPT-2 weights (path = DIR): holds 'score.weight', which GPT-2 of this size has not"),
    (with_tensor(LN.removeprefix("transformer."), lambda state: torch.ones(32)),
     "GPT-2 weights (path = FILE): holds 'h.1.ln_1.weight', which is there already"),
    (with_tensor(LN, lambda state: torch.ones(31)), f"FILE ({LN} = [31]): must have the shape [32]"),
    (with_tensor(LN, lambda state: torch.tensor(1.0)), f"FILE ({LN} = []): must have the shape [32]"),
    (with_tensor(MAP, lambda state: torch.ones(128, 32)), f"FILE ({MAP} = [128, 32]): must have the shape [32, 128]"),
    (with_tensor("lm_head.weight", lambda state: torch.ones(100, 32)),
     "FILE (lm_head.weight = [100, 32]): must have the shape [101, 32]"),
    (with_tensor("lm_head.weight", lambda state: state["transformer.wte.weight"] + 1e-3),
     "GPT-2 weights (path = DIR): holds an lm_head.weight that differs from wte.weight: our head is wte itself"),
    (with_tensor(LN, lambda state: torch.ones(32, dtype=torch.int8)), f"FILE ({LN} = torch.int8): {NUMBERS}"),
    (with_tensor(LN, lambda state: torch.ones(32, dtype=torch.bool)), f"FILE ({LN} = torch.bool): {NUMBERS}"),
    (with_tensor(LN, lambda state: torch.ones(32).to(torch.float8_e4m3fn)), f"FILE ({LN} = torch.float8_e4m3fn): {NUMBERS}"),
    (with_tensor(LN, lambda state: state[LN].clone().index_fill_(0, torch.tensor(3), math.nan)),
     f"FILE ({LN}): must be finite as torch.float32"),
    (with_tensor(LN, lambda state: state[LN].clone().index_fill_(0, torch.tensor(3), -math.inf)),
     f"FILE ({LN}): must be finite as torch.float32"),
    (with_tensor(LN, lambda state: state[LN].double().index_fill_(0, torch.tensor(3), 1e300)),
     f"FILE ({LN}): must be finite as torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), BAD_TENSORS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_tensors_that_do_not_fit_are_refused_by_name(change: Callable, expected: str, file: str, folder: Path) -> None:
    if file == "model.safetensors":
        edit_tensors(folder, change)
    else:
        as_bin(folder, change)
    assert message(folder) == expected.replace("FILE", f"DIR/{file}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (with_tensor("epoch", lambda state: 3), "GPT-2 weights (path = DIR): holds 'epoch', which GPT-2 of this size has not"),
        (with_tensor(LN, lambda state: [1.0] * 32), f"FILE ({LN} = list): {NUMBERS}"),
        (with_tensor(LN, lambda state: state[LN].to_sparse()), f"FILE ({LN} = torch.float32): {NUMBERS}"),
        (with_tensor(LN, lambda state: torch.ones(32, device="meta")), f"FILE ({LN} = torch.float32): {NUMBERS}"),
        (lambda state: [state], "GPT-2 weights (path = FILE): cannot be read: it holds no table of tensors"),
        (lambda state: {1: 2}, "GPT-2 weights (path = DIR): lacks wte.weight"),
    ],
)
def test_what_only_a_pickle_can_hold_is_refused(change: Callable, expected: str, folder: Path) -> None:
    assert message(as_bin(folder, change)) == expected.replace("FILE", "DIR/pytorch_model.bin")


def test_numbers_too_large_for_the_precision_asked_for_are_refused(folder: Path) -> None:
    edit_tensors(folder, with_tensor(LN, lambda state: torch.full((32,), 1e5)))
    with pytest.raises(CheckpointError, match="must be finite as torch.float16"):
        Decoder.from_pretrained(folder, torch.float16)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_hostile_pickle_is_refused_and_never_run(how: str, folder: Path) -> None:
    ran = folder / "ran"
    as_bin(folder, lambda state: state | {"payload": Hostile(ran)}, _use_new_zipfile_serialization=how == "zip")
    if how == "bare":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(ran)))
    rule = "is damaged, or holds more than tensors: nothing in it was run"
    assert message(folder) == f"GPT-2 weights (path = DIR/pytorch_model.bin): {rule}"
    assert not ran.exists()
    if how == "bare":
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
        assert ran.exists()  # it would have


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda data: b"", "Error while deserializing header: header too small"),
        (lambda data: data[:100], "Error while deserializing header: invalid header length"),
        (lambda data: data[:-1], "Error while deserializing header: incomplete metadata, file not fully covered"),
        (lambda data: data + b"\0", "Error while deserializing header: incomplete metadata, file not fully covered"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1", "Error while deserializing header: header too large"),
    ],
)
def test_a_damaged_or_cut_file_is_refused(spoil: Callable[[bytes], bytes], expected: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert message(folder) == f"GPT-2 weights (path = DIR/model.safetensors): cannot be read: {expected}"


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "cannot be read: EOFError"),
        (1, "is damaged, or holds more than tensors: nothing in it was run"),
        (-1, "cannot be read: PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ],
)
def test_a_cut_file_of_the_older_format_is_refused(length: int, expected: str, folder: Path) -> None:
    path = as_bin(folder) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    assert message(folder) == f"GPT-2 weights (path = DIR/pytorch_model.bin): {expected}"


def test_a_file_cut_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(config: DecoderConfig) -> Any:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(8000)
        return stored_shapes(config)

    monkeypatch.setattr("gpt2_lightning.weights.stored_shapes", cut)
    start = "GPT-2 weights (path = DIR/model.safetensors): cannot be read: Could not read tensor"
    assert message(folder).startswith(start)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_bytes_cut_or_flipped_anywhere_give_weights_or_one_line(file: str, folder: Path) -> None:
    if file == "pytorch_model.bin":
        as_bin(folder)
    path, generator = folder / file, torch.Generator().manual_seed(0)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        message(folder)
    for place in torch.cat([torch.arange(0, 4000, 97), torch.randint(0, len(data), (20,), generator=generator)]).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x21]) + data[place + 1 :])
        try:
            Decoder.from_pretrained(folder)
        except CheckpointError as error:
            assert "\n" not in str(error)


def sharded(folder: Path, change: Callable[[dict[str, str]], Any] = lambda shards: shards) -> None:
    """Two shards, and an index whose map is changed."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"{'ab'[place % 2]}.safetensors" for place, name in enumerate(state)}
    for shard in set(shards.values()):
        save_file({name: t for name, t in state.items() if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(shards)}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda shards: shards | {LN: "c.safetensors"}, "(path = DIR/c.safetensors): cannot be read: no such file"),
        (lambda shards: shards | {LN: "../a.safetensors"},
         "(path = DIR/model.safetensors.index.json): must map tensors to files beside it"),
        (lambda shards: shards | {LN: "/etc/passwd"},
         "(path = DIR/model.safetensors.index.json): must map tensors to files beside it"),
        (lambda shards: shards | {LN: ".."}, "(path = DIR/..): cannot be read: no such file"),
        (lambda shards: shards | {LN: 1}, "(path = DIR/model.safetensors.index.json): must map tensors to files beside it"),
        (lambda shards: list(shards), "(path = DIR/model.safetensors.index.json): must map tensors to files beside it"),
        (lambda shards: {}, "(path = DIR): lacks wte.weight"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused(change: Callable, expected: str, folder: Path) -> None:
    sharded(folder, change)
    assert message(folder) == f"GPT-2 weights {expected}"


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    sharded(folder)
    both = load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors")
    save_file({LN: both[LN]} | load_file(folder / "a.safetensors"), folder / "a.safetensors")
    save_file({LN: both[LN]} | load_file(folder / "b.safetensors"), folder / "b.safetensors")
    assert message(folder) == "GPT-2 weights (path = DIR/b.safetensors): holds 'h.1.ln_1.weight', which is there already"


def test_a_settings_file_that_asks_for_endless_layers_is_refused_at_once(folder: Path) -> None:
    edit_config(folder, n_layer=10**12)
    assert message(folder) == "GPT-2 weights (path = DIR): lacks h.2.ln_1.weight"


def test_a_folder_that_lacks_a_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    rule = "has neither model.safetensors nor pytorch_model.bin, whole or in shards"
    assert message(folder) == f"GPT-2 weights (path = DIR): {rule}"
    (folder / "model.safetensors").mkdir()
    assert message(folder) == "GPT-2 weights (path = DIR/model.safetensors): cannot be read: no such file"
    (folder / "config.json").unlink()
    assert message(folder) == "GPT-2 weights (path = DIR/config.json): cannot be read: no such file"


@pytest.mark.parametrize("name", ["openai-community/gpt2", "x" * 5000])
def test_a_name_that_is_no_folder_is_said_to_be_none(name: str, here: Path) -> None:
    rule = "is no folder on disk, and names on the hub are not looked up. Download it and give its folder"
    assert message(Path(name)) == f"GPT-2 weights (path = DIR): {rule}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"norm": "post"}, "norm placement (pre: GPT-2, post: GPT-1) (model.norm = post): must be pre: GPT-2 has no other"),
        ({"attention_window": 23},
         "tokens a position attends to, itself included (none: the whole context) (model.attention_window = 23): "
         "must be none: GPT-2 attends to the whole context"),
    ],
)  # fmt: skip
def test_what_gpt2_lacks_is_not_written(options: dict, expected: str, tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=8, block_size=24, vocab_size=5, **options))
    with pytest.raises(ConfigError) as caught:
        decoder.save_pretrained(tmp_path / "ours")
    assert (str(caught.value), caught.value.status) == (expected, 2)
    assert not (tmp_path / "ours").exists()


def test_a_window_as_wide_as_the_context_is_written(tmp_path: Path) -> None:
    decoder = Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=8, block_size=24, vocab_size=5, attention_window=24)).eval()
    decoder.save_pretrained(tmp_path)
    assert torch.equal(logits(Decoder.from_pretrained(tmp_path)), logits(decoder))


def test_a_place_that_cannot_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder.from_pretrained(folder)
    with pytest.raises(OutputError, match=r"^GPT-2 weights \(folder = .*/config.json\): cannot be written: ") as caught:
        decoder.save_pretrained(folder / "config.json")
    assert caught.value.status == 8
    (folder / "sub" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"^GPT-2 weights \(folder = .*/sub\): cannot be written: "):
        decoder.save_pretrained(folder / "sub")
    assert not (folder / "sub" / "config.json").exists()


PEAK = """
import sys
from pathlib import Path
from gpt2_lightning.decoder import Decoder

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

def load(path):
    return Decoder.from_pretrained(path)

load(sys.argv[2])  # what is imported on the way is no part of it
before = status("VmRSS")
decoder = load(sys.argv[1])
print((status("VmHWM") - before) / sum(p.nbytes for p in decoder.parameters()))
"""


def four_forms(place: Path, **shape: int) -> list[Path]:
    """The same GPT-2 whole, in shards, pickled and in half precision."""
    whole, shards, pickled, halves = (place / name for name in ("whole", "shards", "pickled", "halves"))
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    theirs.save_pretrained(whole)
    theirs.save_pretrained(shards, max_shard_size="50MB")
    as_bin(shutil.copytree(whole, pickled), lambda state: {name: t.half() for name, t in with_head(state).items()})
    edit_tensors(shutil.copytree(whole, halves), lambda state: {name: t.half() for name, t in state.items()})
    return [whole, shards, pickled, halves]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """All resident pages count, mapped files too. Not ``ru_maxrss``: a child begins with its parent's peak."""
    large, small = four_forms(tmp_path / "large", n_embd=640, n_head=10), four_forms(tmp_path / "small", n_embd=8, n_head=1)
    for folders in zip(large, small, strict=True):
        done = subprocess.run([sys.executable, "-c", PEAK, *folders], capture_output=True, text=True, check=True)
        assert 0.9 < float(done.stdout) < 1.2, folders[0]
