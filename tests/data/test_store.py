"""A store gives back each document from its position; it is whole or not there, and noticed when its source changes."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2_lightning.data.corpus import CorpusConfig, identity, read_corpus
from gpt2_lightning.data.store import Store, open_store
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.errors import DataError, OutputError

CACHE = Path("cache")


def opened(tokenizer: str | None = None, size: int = 16_384, cache: Path = CACHE, **options: object) -> dict[str, Store]:
    config = CorpusConfig(**{"path": "a.txt", "split": "line", "holdout_every": 3} | options)
    return open_store("a", partial(read_corpus, config, size), identity(config, size), tokenizer, cache)


@pytest.mark.parametrize("tokenizer", [None, "gpt2", "bytes"])
def test_documents_come_by_position(here: Path, tokenizer: str | None) -> None:
    texts = [f"Número {n}: " + "word " * n for n in range(20)]
    (here / "a.txt").write_text("\n".join(texts))
    parts = opened(tokenizer)
    assert [parts["validation"].text(i) for i in range(6)] == texts[2::3]
    assert [parts["train"].text(i) for i in (13, 0, 5)] == [texts[19], texts[0], texts[7]]
    assert len(parts["train"]) == 14
    if tokenizer:
        encode = load_tokenizer(tokenizer).encode
        tokens = parts["train"].tokens(4)
        assert tokens[:-1].tolist() == encode(texts[6]).tolist()
        assert tokens[-1] == load_tokenizer(tokenizer).end_of_text
        assert parts["train"].elements(14) == sum(len(parts["train"].tokens(i)) for i in range(14))


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"), max_size=400), max_size=20
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives_as_text_and_as_tokens(here: Path, texts: list[str]) -> None:
    (here / "a.txt").write_bytes("\n".join(texts).encode())
    kept = [text for text in texts if text.strip()]
    for tokenizer in (None, "gpt2"):
        store = opened(tokenizer, size=256, holdout_every=10**6)["train"]
        joined, found = "", []
        for i in range(len(store)):
            joined += store.text(i)
            if store.is_whole(i):
                found.append(joined)
                joined = ""
        assert found == kept


def test_a_long_document_is_stored_as_several_of_one_part(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\n" + "long " * 1000 + "\nthree")
    parts = opened(size=300)
    assert len(parts["validation"]) > 10
    assert "".join(parts["validation"].text(i) for i in range(len(parts["validation"]))) == "long " * 1000
    assert [i for i in range(len(parts["validation"])) if parts["validation"].is_whole(i)] == [len(parts["validation"]) - 1]
    assert [parts["train"].text(i) for i in range(3)] == ["one", "two", "three"]


def test_it_is_built_once_and_again_when_the_source_changes(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree")
    first = opened()["train"]
    stamp = (first.folder / "train.bin").stat().st_mtime_ns
    assert (opened()["train"].folder / "train.bin").stat().st_mtime_ns == stamp
    os.utime(here / "a.txt", ns=(1, 1))
    same = opened()["train"]
    assert same.folder != first.folder
    assert same.fingerprint == first.fingerprint
    (here / "a.txt").write_text("one\nTwo\nthree")
    assert opened()["train"].fingerprint != first.fingerprint


def test_the_fingerprint_is_that_of_the_text_and_its_documents(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree")
    prints = [opened(t)["train"].fingerprint for t in (None, "gpt2", "bytes")]
    assert len(set(prints)) == 1
    assert opened(split="file")["train"].fingerprint != prints[0]


def test_a_broken_source_leaves_nothing(here: Path) -> None:
    (here / "a.txt").write_bytes(b"fine\nnot \xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 9"):
        opened(cache=Path("out/cache"))
    assert [path.name for path in here.iterdir()] == ["a.txt"]


def dead_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_what_a_killed_build_left_is_removed(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree")
    folder = opened()["train"].folder
    (folder / "store.json").unlink()
    folder.rename(folder.with_name(f".{folder.name}.{socket.gethostname()}.{dead_process()}"))
    opened()
    assert sorted(path.name for path in CACHE.iterdir()) == [folder.name]


def test_a_store_cut_short_while_it_is_read_is_said(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree\nfour")
    store = opened()["train"]
    os.truncate(store.folder / "train.bin", 8)
    assert store.text(0) == "one"
    with pytest.raises(DataError, match="cut short while it was read"):
        store.text(2)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: os.truncate(folder / "train.index", 9),
        lambda folder: (folder / "train.bin").unlink(),
        lambda folder: (folder / "store.json").write_text(""),
        lambda folder: (folder / "store.json").write_text("{}"),
        lambda folder: (folder / "train.bin").write_bytes(b"\xff" * (folder / "train.bin").stat().st_size),
    ],
)
def test_a_damaged_store_is_named(here: Path, harm: Callable[[Path], object]) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree\nfour")
    folder = opened()["train"].folder
    harm(folder)
    with pytest.raises(DataError, match="store.*is damaged.*Remove the folder to build it again"):
        opened()["train"].text(0)


def test_a_folder_without_a_manifest_is_built_anew(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree\nfour")
    folder = opened()["train"].folder
    (folder / "store.json").unlink()
    assert opened()["train"].text(0) == "one"


def test_a_waiting_run_that_gives_up_harms_nobody(here: Path) -> None:
    (here / "a.txt").write_text("\n".join(f"document {n} " * 20 for n in range(60_000)))
    runs = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)]
    while not list(CACHE.glob(".a-*/train.bin")):
        time.sleep(0.01)
    waiter = subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    waiter.send_signal(signal.SIGINT)
    waiter.wait()
    runs.append(subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert [path.name[0] for path in CACHE.iterdir()] == ["a"]


def test_the_source_may_go_away_while_it_is_read(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree\nfour")
    store = opened()["train"]
    (here / "a.txt").unlink()
    assert store.text(2) == "four"
    assert pickle.loads(pickle.dumps(store)).text(1) == "two"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree")
    CACHE.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="cannot be written"):
        opened()


def test_a_file_where_the_folder_should_be_is_said(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree")
    CACHE.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        opened()


BUILD = """
import sys
from functools import partial
from pathlib import Path
from gpt2_lightning.data.corpus import CorpusConfig, identity, read_corpus
from gpt2_lightning.data.store import open_store
config = CorpusConfig(path="a.txt", split="line")
print(open_store("a", partial(read_corpus, config, 16384), identity(config, 16384), "gpt2", Path("cache"))["train"].fingerprint)
"""


def test_two_runs_that_need_it_at_once_share_one(here: Path) -> None:
    (here / "a.txt").write_text("\n".join(f"document {n} " * 20 for n in range(5000)))
    runs = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    prints = {run.communicate(timeout=120)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(prints) == 1
    assert len(list(CACHE.iterdir())) == 1


def test_a_killed_build_does_not_stand(here: Path) -> None:
    (here / "a.txt").write_text("\n".join(f"document {n} " * 20 for n in range(60_000)))
    run = subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE)
    while not list(CACHE.glob(".a-*/train.bin")):
        time.sleep(0.01)
    run.kill()
    run.communicate()
    assert not list(CACHE.glob("a-*"))
    again = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert len(again.stdout.strip()) == 32
    assert [path.name[0] for path in CACHE.iterdir()] == ["a"]


def test_tokens_are_sixteen_bits_that_anything_can_map(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\nthree\nfour")
    store = opened("gpt2")["train"]
    mapped = np.memmap(store.folder / "train.bin", "<u2", "r")
    assert load_tokenizer("gpt2").decode(mapped[mapped != 50256].tolist()) == "onetwofour"
