"""Training from weights that are there: transformers' folders, nanoGPT's file, released names; and what is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from gpt2_lightning import run as training
from gpt2_lightning.config import compose_config
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import CheckpointError, ConfigError
from gpt2_lightning.pretrained import find_weights, load_weights, open_decoder
from gpt2_lightning.settings.pretrained import RELEASED
from tests import lab
from tests.data.hub import serve
from tests.test_weights import PEAK, Hostile, as_bin, edit_tensors, logits, reference

SHAPE = DecoderConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=257)
OVERRIDES = [f"model.{key}={getattr(SHAPE, key)}" for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")]
WORDS = ("trainer=cpu", "data.batch_size=2", "data.val_batches=1", "samples.max_new_tokens=0", *OVERRIDES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "theirs"
    reference(vocab_size=257).save_pretrained(path)
    return path


@pytest.fixture
def theirs(saved: Path, here: Path) -> Path:
    """A folder of theirs, called ``theirs`` in the current folder."""
    return shutil.copytree(saved, here / "theirs")


def nano(decoder: Decoder, biased: bool = True, prefix: str = "_orig_mod.", words: int = 0, **more: Any) -> dict[str, Any]:
    """What nanoGPT saves of a decoder with these weights, its vocabulary filled up to ``words``."""
    state = {f"transformer.{name}": tensor.clone() for name, tensor in decoder.state_dict().items()}
    if not biased:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".bias")}
    wte = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = state["lm_head.weight"] = F.pad(wte, (0, 0, 0, max(0, words - len(wte))), value=0.1)
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    c = decoder.config
    args = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.block_size, "bias": biased}
    args |= {"vocab_size": words or c.vocab_size, "dropout": 0.0}
    moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
    whole = {"model": {f"{prefix}{name}": t for name, t in state.items()}, "model_args": args, "optimizer": moments}
    return whole | {"iter_num": 7, "best_val_loss": torch.tensor(3.0), "config": {"device": "cuda", "compile": True}} | more


def started(init: str, model: DecoderConfig = SHAPE) -> Decoder:
    return load_weights(find_weights(init, model), model)


def refused(init: str, model: DecoderConfig = SHAPE) -> tuple[int, str]:
    """Exit status and line."""
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        started(init, model)
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_run_starts_from_their_weights_with_its_own_dropout(theirs: Path, pickled: bool) -> None:
    if pickled:
        as_bin(theirs)
    model = DecoderConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=257, dropout=0.3)
    decoder = started("theirs", model)
    assert decoder.training
    assert decoder.config.dropout == 0.3
    torch.testing.assert_close(logits(decoder.eval()), logits(reference(vocab_size=257)), atol=1e-5, rtol=0)


def test_a_shorter_context_keeps_the_first_positions(theirs: Path) -> None:
    model = DecoderConfig(n_layer=2, n_head=2, n_embd=32, block_size=10, vocab_size=257)
    tokens = torch.randint(0, 257, (2, 10))
    with torch.no_grad():
        ours, wanted = started("theirs", model).eval()(tokens), reference(vocab_size=257)(tokens).logits
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("prefix", ["_orig_mod.", ""])
def test_nanogpts_checkpoint_gives_its_weights(here: Path, biased: bool, prefix: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(SHAPE).eval()
    if biased:
        with torch.no_grad():
            for p in decoder.parameters():
                p.add_(0.05 * torch.randn_like(p))
    torch.save(nano(decoder, biased, prefix), here / "ckpt.pt")
    assert torch.equal(logits(started("ckpt.pt").eval()), logits(decoder))


def test_the_words_that_fill_nanogpts_vocabulary_up_are_left_out(here: Path) -> None:
    shape = DecoderConfig(n_layer=1, n_head=1, n_embd=4, block_size=24)
    decoder = Decoder(shape).eval()
    torch.save(nano(decoder, words=50304), here / "ckpt.pt")
    found = started("ckpt.pt", shape)
    assert found.wte.weight.shape == (50257, 4)
    assert torch.equal(found.wte.weight, decoder.wte.weight)


@pytest.mark.parametrize(
    ("change", "status", "expected"),
    [
        ({"model_args": {"n_layer": 2}}, 4, "n_head = None): must be an integer"),
        ({"model_args": None}, 4, "is no checkpoint of nanoGPT: it has no model_args"),
        ({"model": {}}, 4, "lacks wte.weight"),
        ({"model": {"transformer.wte.weight": torch.ones(3, 3)}}, 4, "wte.weight = [3, 3]): must have the shape [257, 32]"),
        ({"payload": Hostile(Path("ran"))}, 4, "is damaged, or holds more than tensors: nothing in it was run"),
    ],
)
def test_a_wrong_checkpoint_of_nanogpt_is_refused(here: Path, change: dict, status: int, expected: str) -> None:
    torch.save(nano(Decoder(SHAPE), **change), here / "ckpt.pt")
    assert refused("ckpt.pt")[0] == status
    assert expected in refused("ckpt.pt")[1]
    assert not Path("ran").exists()


def test_a_head_of_its_own_and_numbers_that_are_none_are_refused(here: Path) -> None:
    whole = nano(Decoder(SHAPE), prefix="")
    torch.save(whole | {"model": whole["model"] | {"lm_head.weight": torch.ones(257, 32)}}, here / "head.pt")
    assert "differs from wte.weight" in refused("head.pt")[1]
    whole["model"]["transformer.ln_f.weight"][3] = torch.nan
    torch.save(whole, here / "nan.pt")
    assert "ln_f.weight): must be finite" in refused("nan.pt")[1]
    (here / "cut.pt").write_bytes((here / "nan.pt").read_bytes()[:1000])
    assert refused("cut.pt")[0] == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vocab_size": 50257}, "vocabulary size (model.vocab_size = 50257): differs from the 257 of init=theirs. "
                                "Set model.vocab_size=257"),
        ({"n_layer": 3}, "(model.n_layer = 3): differs from the 2 of init=theirs. Set model.n_layer=2"),
        ({"n_head": 4}, "(model.n_head = 4): differs from the 2 of init=theirs. Set model.n_head=2"),
        ({"n_embd": 64}, "(model.n_embd = 64): differs from the 32 of init=theirs. Set model.n_embd=32"),
        ({"block_size": 25}, "(model.block_size = 25): must be at most the context of init=theirs, 24. "
                             "Set model.block_size=24"),
        ({"norm": "post"}, "(model.norm = post): must be pre for init=theirs: GPT-2 has no other. Set model.norm=pre"),
    ],
)  # fmt: skip
def test_shapes_that_differ_are_refused_with_both_values(theirs: Path, changes: dict, expected: str) -> None:
    shape = {key: getattr(SHAPE, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    status, line = refused("theirs", DecoderConfig(**shape | changes))
    assert status == 2
    assert expected in line


@pytest.mark.parametrize("name", RELEASED)
def test_released_shapes_are_held_before_anything_is_loaded(name: str) -> None:
    option = RELEASED[name].option
    config = compose_config([f"init={name}", f"model={option}", "data=shakespeare_bpe"])
    assert config.model.n_embd == RELEASED[name].shape.n_embd
    others = ["model=gpt2" if name != "gpt2" else "model=gpt2_xl", "data=shakespeare_bpe"]
    with pytest.raises(ConfigError, match=rf"differs from the \d+ of init={name}. Set model={option}$"):
        compose_config([f"init={name}", *others])
    with pytest.raises(
        ConfigError, match=rf"differs from the 50257 of init={name}. Set model={option} and data.tokenizer=gpt2"
    ):
        compose_config([f"init={name}", "model=nano"])


def test_what_is_not_there_or_hostile_is_refused(theirs: Path, here: Path) -> None:
    assert refused("elsewhere") == (
        4,
        "weights to start from (init = elsewhere): is not on disk, and none of gpt2, gpt2-medium, gpt2-large, gpt2-xl",
    )
    assert refused("theirs/model.safetensors")[1].endswith("is one file of a folder in transformers' format. Set init=theirs")
    as_bin(theirs, lambda state: state | {"payload": Hostile(here / "ran")})
    assert refused("theirs")[1].endswith("is damaged, or holds more than tensors: nothing in it was run")
    assert not (here / "ran").exists()


def test_a_refused_run_leaves_nothing(theirs: Path, here: Path) -> None:
    edit_tensors(theirs, lambda state: state | {"transformer.ln_f.bias": torch.full((32,), torch.nan)})
    assert lab.run((*WORDS, "init=theirs", "trainer.max_steps=1"), here, log=str(here / "said")) == 4
    assert "ln_f.bias): must be finite" in (here / "said").read_text()
    assert not (here / "outputs").exists()


def test_a_step_is_taken_from_the_weights_and_a_resumed_run_does_not_read_them_again(theirs: Path, here: Path) -> None:
    words = (*WORDS, "init=theirs", "schedule.warmup_steps=0", "trainer.val_every=1", "trainer.log_every=1")
    run = lab.train((*words, "trainer.max_steps=1", "optimizer.lr=1e-6", "run.id=a"), here)
    _, weights = lab.last_state(run)
    before = started("theirs").state_dict()
    assert not torch.equal(weights["wte.weight"], before["wte.weight"])
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, before[name], atol=3e-6, rtol=0)
    assert "starts from the weights of theirs" in (here / "log").read_text()
    shutil.rmtree(theirs)
    longer = ("trainer.max_steps=2", "optimizer.lr=1e-6", "run.id=a", "resume_allow=[trainer.max_steps]")
    assert lab.run((*words, *longer), here) == 0
    assert "goes on from step-00000001" in (here / "log").read_text()
    assert lab.run((*words, *longer, "init=null"), here) == 4
    assert "init (theirs there, None now)" in (here / "log").read_text()


def test_two_ranks_read_and_start_from_the_same_weights(theirs: Path, here: Path) -> None:
    def told() -> None:
        there = training.load_weights

        def noted(path: Path, model: DecoderConfig) -> Decoder:
            (here / f"read-by-{os.environ.get('LOCAL_RANK', '0')}").touch()
            return there(path, model)

        training.load_weights = noted

    words = (*WORDS, "init=theirs", "trainer.max_steps=1", "optimizer.lr=1e-6", "trainer.devices=2", "schedule.warmup_steps=0")
    _, weights = lab.last_state(lab.train(words, here, told))
    for name, tensor in started("theirs").state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=3e-6, rtol=0)
    assert sorted(path.name for path in here.glob("read-by-*")) == ["read-by-0", "read-by-1"]


def hub_of(model: transformers.GPT2LMHeadModel, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FETCH = """
import sys
from gpt2_lightning.decoder import DecoderConfig
from gpt2_lightning.pretrained import find_weights, load_weights
from gpt2_lightning.settings import pretrained
shape = DecoderConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=101)
pretrained.RELEASED["gpt2"].shape = shape
for _ in range(2):
    print(float(load_weights(find_weights("gpt2", shape), shape).ln_f.weight.sum()))
"""


def test_a_released_name_is_fetched_from_the_hub_once(here: Path) -> None:
    files = hub_of(reference(), here / "theirs")
    with serve({"openai-community/gpt2": files}) as (address, asked):
        own = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(here / "hf")}
        done = subprocess.run([sys.executable, "-c", FETCH], env=own, capture_output=True, text=True)
    expected = float(reference().transformer.ln_f.weight.detach().sum())
    assert list(map(float, done.stdout.split())) == pytest.approx([expected] * 2), done.stderr
    head_and_get = [name for name in ("config.json", "model.safetensors") for _ in range(2)]
    assert asked == [*head_and_get, "config.json", "model.safetensors"]  # the second time each is asked after, and not sent


def test_a_hub_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: str) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", away)
    shape = RELEASED["gpt2-xl"].shape
    assert refused("gpt2-xl", shape) == (
        4,
        "released weights (init = gpt2-xl): 'openai-community/gpt2-xl' cannot be fetched: ConnectionError: no route. "
        "Check the network, or download it elsewhere and give its folder, as ./gpt2-xl",
    )


PEAK_OF_INIT = PEAK.replace(
    "from gpt2_lightning.decoder import Decoder",
    "from gpt2_lightning.decoder import DecoderConfig\nfrom gpt2_lightning.pretrained import find_weights, load_weights",
).replace(
    "return Decoder.from_pretrained(path)",
    "c = DecoderConfig(n_embd=int(Path(path).parent.name), n_head=1); return load_weights(find_weights(path, c), c)",
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_starting_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """Of nanoGPT's file, which is mapped, no page stays beside its copy, and none of the moments is read."""
    for width in (640, 8):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=width, n_head=1))
        theirs.save_pretrained(tmp_path / f"{width}/theirs")
        decoder = Decoder.from_pretrained(tmp_path / f"{width}/theirs")
        moments = {name: torch.zeros_like(p) for name, p in decoder.state_dict().items()}
        torch.save(nano(decoder, optimizer={"first": moments, "second": moments}), tmp_path / f"{width}/ckpt.pt")
    for name in ("theirs", "ckpt.pt"):
        command = [sys.executable, "-c", PEAK_OF_INIT, *(str(tmp_path / width / name) for width in ("640", "8"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert 0.9 < float(done.stdout) < 1.2, name


def test_run_may_name_a_folder_or_a_run(theirs: Path, here: Path) -> None:
    assert open_decoder("theirs", here / "outputs").checkpoint is None
    with pytest.raises(CheckpointError, match=r"run \(run = nobody\): has no checkpoint"):
        open_decoder("nobody", here / "outputs")


def round_trip(theirs: transformers.GPT2LMHeadModel, model: tuple[str, ...], here: Path) -> None:
    """Their weights in, a step, out again: before and after it, both libraries have the same logits."""
    theirs.save_pretrained(here / "theirs")
    tokens = torch.randint(0, theirs.config.vocab_size, (1, 24))
    with torch.no_grad():
        before = theirs(tokens).logits
        torch.testing.assert_close(Decoder.from_pretrained("theirs")(tokens), before, atol=1e-5, rtol=0)
    data = "data=shakespeare_bpe" if theirs.config.vocab_size == 50257 else "data=shakespeare"
    short = ("trainer=cpu", "trainer.max_steps=1", "data.batch_size=1", "data.val_batches=1", "samples.max_new_tokens=0")
    lab.train(("init=theirs", *model, data, *short, "schedule.warmup_steps=0", "optimizer.lr=1e-3"), here)
    assert lab.run(("export", "run=run", "to=ours"), here) == 0
    again, info = transformers.AutoModelForCausalLM.from_pretrained("ours", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        trained = again.eval()(tokens).logits
        ours = open_decoder("run", here / "outputs").decoder(tokens)
    torch.testing.assert_close(ours, trained, atol=1e-5, rtol=0)
    assert (trained - before).abs().max() > 1e-3
    assert json.loads((here / "ours/config.json").read_text())["vocab_size"] == theirs.config.vocab_size


def test_tiny_weights_make_the_round_trip(here: Path) -> None:
    round_trip(reference(vocab_size=257), tuple(OVERRIDES), here)


@pytest.mark.slow
def test_124m_makes_the_round_trip(here: Path) -> None:
    torch.manual_seed(0)
    round_trip(transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval(), ("model=gpt2", "model.block_size=64"), here)
