"""Hub data sets are streamed by position at their revision; what is not there is said. The hub is a small one on loopback."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_lightning.data import hub
from gpt2_lightning.data.hub import RowGroups, open_hub
from gpt2_lightning.data.rows import Rows
from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import CorpusConfig
from tests.conftest import Command
from tests.data.hub import COMMIT, data_set, serve

TEXTS = [f"Document {n} speaks of {n * n}, and of little else." for n in range(100)]


def local(folder: Path, texts: list[str | None], files: int = 3, **options: object) -> CorpusConfig:
    """A data set in a folder, which ``datasets`` opens like one of the hub."""
    (folder / "set").mkdir(exist_ok=True)
    size = -(-len(texts) // files)
    for i in range(files):
        table = pa.table({"text": pa.array(texts[i * size : (i + 1) * size], pa.string())})
        pq.write_table(table, folder / f"set/train-{i}.parquet", row_group_size=7)
    return CorpusConfig(**{"hub": str(folder / "set"), "holdout_every": 10} | options)


def test_documents_come_by_position(here: Path) -> None:
    parts = open_hub(local(here, TEXTS))
    train, held_out = parts["train"], parts["validation"]
    assert [held_out.text(i) for i in range(len(held_out))] == TEXTS[9::10]
    assert [train.text(i) for i in range(len(train))] == [text for n, text in enumerate(TEXTS) if n % 10 != 9]
    assert train.text(50) == TEXTS[55]


def test_a_limit_holds_out_the_first_and_gives_the_rest_to_training(here: Path) -> None:
    parts = open_hub(local(here, TEXTS, holdout_limit=2))
    assert [parts["validation"].text(i) for i in range(len(parts["validation"]))] == [TEXTS[9], TEXTS[19]]
    texts = [parts["train"].text(i) for i in range(len(parts["train"]))]
    assert texts == [text for n, text in enumerate(TEXTS) if n not in (9, 19)]


def test_rows_can_be_joined_to_documents(here: Path) -> None:
    parts = open_hub(local(here, TEXTS, join=8))
    assert len(parts["train"]) + len(parts["validation"]) == 13
    assert parts["train"].text(1) == "\n".join(TEXTS[8:16])
    assert parts["train"].text(len(parts["train"]) - 1) == "\n".join(TEXTS[96:])


def test_little_is_held_and_it_is_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HELD_BYTES", 800)
    config = local(here, TEXTS)
    rows = RowGroups(hub.hub_files(config), Rows(config))
    assert [rows.row(i) for i in (99, 0, 50, 98, 1)] == [TEXTS[i] for i in (99, 0, 50, 98, 1)]
    assert len(rows.held) < 5


def test_the_fingerprint_changes_with_the_files(here: Path) -> None:
    first = open_hub(local(here, TEXTS))["train"].fingerprint
    assert open_hub(local(here, TEXTS))["train"].fingerprint == first
    assert open_hub(local(here, [*TEXTS, "more"]))["train"].fingerprint != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "body"}, "has no field 'body'; it has text"),
        ({"hub": "no/where"}, "hub = no/where.: cannot be read: OfflineModeIsEnabled"),
        ({"hub_config": "other"}, "cannot be read: ValueError: BuilderConfig 'other' not found"),
    ],
)
def test_what_is_not_there_is_said(here: Path, options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=message):
        open_hub(local(here, TEXTS, **options))


def test_an_empty_row_is_named(here: Path) -> None:
    with pytest.raises(DataError, match="train-0.parquet, row 3.*holds no text in the field 'text' but NoneType"):
        documents = open_hub(local(here, ["a", "b", None, "d"], files=1))["train"]
        [documents.text(i) for i in range(4)]


@pytest.fixture
def conf(here: Path) -> Path:
    """A data option that streams the small hub's data set."""
    (here / "conf/data").mkdir(parents=True)
    (here / "conf/data/web.yaml").write_text(
        "# A small data set\ntokenizer: bytes\ncorpora:\n  web: {hub: owner/set, hub_config: plain_text,"
        f" revision: {COMMIT}, holdout_every: 10}}\n"
    )
    return here


@pytest.mark.slow
def test_a_run_streams_from_the_hub_and_reads_only_what_it_needs(process: Command, conf: Path) -> None:
    texts = [f"Document {n} " * 40 for n in range(3000)]
    files = data_set(texts, files=30, rows_a_group=50)
    with serve({"owner/set": files}) as (address, asked):
        env = {"HF_ENDPOINT": address, "HF_HOME": str(conf / "hf")}
        words = [
            "data=web",
            "model=nano",
            "trainer=cpu",
            "data.batch_size=4",
            "data.shuffle_documents=100",
            "data.val_batches=1",
        ]
        done = process(*words, "trainer.max_steps=3", "trainer.val_every=3", "samples.max_new_tokens=5", cwd=conf, **env)
        assert done.returncode == 0, done.stderr
        bytes_read = len(asked)
        assert bytes_read < 3 * 30 + 40
        digests = {process("data", *words, "n=5", *more, cwd=conf, **env).stdout.splitlines()[-1] for more in ([], ["ranks=2"])}
        cached = process("data", *words, "n=5", "data.cache=true", cwd=conf, **env).stdout.splitlines()[-1]
        assert digests == {cached}
        assert cached.startswith("digest ")
        missing = process("data", *words, "data.corpora.web.revision=other", cwd=conf, **env)
        assert missing.returncode == 3
        assert "Revision" in missing.stderr
