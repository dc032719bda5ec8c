"""Exports: transformers loads model and tokenizer, and nothing that is no export is lost."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from gpt2_lightning import export as room
from gpt2_lightning.data.tokens import gpt2_ranks, load_tokenizer
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import ConfigError, OutputError
from gpt2_lightning.export import export, letters, merged_from
from gpt2_lightning.settings.export import ExportConfig

TEXTS = [
    "To be, or not to be: that is the question.",
    "  Two  blanks,\ttabs\n\n\nand lines \n of 1234567 and it's they'll WE'RE ",
    "Ünïcödé, 東京, и так далее 😀👩‍👩‍👧 \u200b\ufeff½",
    "".join(map(chr, range(1, 0x250))),
    "def f(x):\n    return {'a': x[0] ** 2, \"b\": 1e-5}  # !?&%$",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary on a very small decoder."""
    path = tmp_path_factory.mktemp("saved") / "small"
    Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=4, block_size=64)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "new" / "ours"
    export(ExportConfig(run=str(saved), to=str(path)))
    return path


def test_transformers_loads_model_and_tokenizer(exported: Path) -> None:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.bos_token_id) == (50257, 50256, 50256)
    assert tokenizer.model_max_length == 64
    assert model.generation_config.eos_token_id == 50256
    prompt = tokenizer("To be", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).shape == (1, prompt.input_ids.shape[1] + 2)


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokens_are_ours(exported: Path, text: str) -> None:
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(exported), load_tokenizer("gpt2")
    tokens = tokenizer(text).input_ids
    assert tokens == ours.encode(text).tolist()
    assert tokenizer.decode(tokens) == text


def test_its_weights_are_the_runs(saved: Path, exported: Path) -> None:
    for (name, there), ours in zip(
        Decoder.from_pretrained(exported).named_parameters(), Decoder.from_pretrained(saved).parameters(), strict=True
    ):
        assert torch.equal(there, ours), name


def test_merges_are_what_makes_the_words() -> None:
    ranks = gpt2_ranks()
    assert len(set(letters().values())) == 256
    for word in [b" the", b"ing", next(w for w in ranks if len(w) == 3 and w[0] > 0xE0), max(ranks, key=len)]:
        a, b = merged_from(word, ranks)
        assert a + b == word
        assert max(ranks[a], ranks[b]) < ranks[word]


def bytes_folder(path: Path) -> str:
    Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=257)).save_pretrained(path)
    return str(path)


def test_bytes_have_no_tokenizer_and_it_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(ExportConfig(run=bytes_folder(here / "bytes"), to="ours"))
    assert "no tokenizer: transformers knows none of 257 words. This one's are the bytes of UTF-8" in capsys.readouterr().out
    names = {path.name for path in (here / "ours").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "gpt2_lightning.json"}
    assert transformers.AutoModelForCausalLM.from_pretrained("ours").config.vocab_size == 257


def test_an_export_replaces_an_export_and_nothing_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = bytes_folder(here / "bytes")
    (here / "ours").mkdir()
    for _ in range(2):
        export(ExportConfig(run=run, to="ours"))
    assert sorted(path.name for path in here.iterdir()) == ["bytes", "ours"]
    (here / "ours/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"export \(to = ours\): is not empty, and no export. .*overwrite=true"):
        export(ExportConfig(run=run, to="ours"))
    export(ExportConfig(run=run, to="ours", overwrite="true"))
    assert not (here / "ours/notes.txt").exists()
    (kept,) = here.glob("ours.*")
    assert (kept / "notes.txt").read_text() == "mine"
    assert f"what was there is now in '{kept.name}'" in capsys.readouterr().out


@pytest.mark.parametrize(("to", "rule"), [("file", "is a file"), (".", "is the folder you are in"), ("/", "or above it")])
def test_places_that_are_no_place_are_refused(here: Path, to: str, rule: str) -> None:
    (here / "file").write_text("")
    with pytest.raises(OutputError, match=rule):
        export(ExportConfig(run=bytes_folder(here / "bytes"), to=to, overwrite="true"))


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_what_fails_leaves_what_was_there(here: Path, overwrite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bytes_folder(here / "bytes")
    export(ExportConfig(run=run, to="a/ours"))
    before = (here / "a/ours/config.json").stat().st_ino

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(room, "read_manifest", full)
    monkeypatch.setattr(room, "write_json", full)
    for to in ("a/ours", "b/ours"):
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            export(ExportConfig(run=run, to=to, overwrite=overwrite))
    assert (here / "a/ours/config.json").stat().st_ino == before
    assert sorted(path.name for path in here.rglob("*") if path.is_dir()) == ["a", "bytes", "ours"]


def test_what_gpt2_lacks_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=257, norm="post"))
    monkeypatch.setattr(room, "open_decoder", lambda *_: room.Opened(decoder, {}, None))
    with pytest.raises(ConfigError, match="must be pre: GPT-2 has no other"):
        export(ExportConfig(run="x", to="ours"))
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "run .*must be given"),
        ({"run": "x"}, "to = ''.*must be given"),
        ({"run": "x", "to": "y", "overwrite": "yes"}, "one of"),
    ],
)
def test_keys_are_checked(words: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**words)
