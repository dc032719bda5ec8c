"""The evaluate command: from words to a table, JSON and TensorBoard; what is refused; text from files, options and the hub."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_lightning.__main__ import main
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.evaluation.perplexity import measure
from gpt2_lightning.pretrained import open_decoder
from tests import lab
from tests.data.hub import serve
from tests.evaluation.sample import documents, passages, questions, write

Say = Callable[..., tuple[int, str]]
BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two corpora, trained for two steps."""
    root = tmp_path_factory.mktemp("trained")
    write(root / "one.jsonl", [{"text": text} for text in documents(20)])
    write(root / "two.jsonl", [{"text": text["text"]} for text in passages(20)])
    (root / "conf/data").mkdir(parents=True)
    corpora = "".join(f"  {name}: {{path: {root}/{name}.jsonl}}\n" for name in ("one", "two"))
    (root / "conf/data/both.yaml").write_text(f"tokenizer: bytes\ncorpora:\n{corpora}")
    lab.train((*lab.NANO, "data=both", "trainer.max_steps=2", "trainer.val_every=2", "data.val_batches=null"), root)
    return root


@pytest.fixture
def say(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """The command in the trained folder: its status, and what it printed."""
    monkeypatch.chdir(trained)

    def said(*words: str) -> tuple[int, str]:
        status = main(["evaluate", *words])
        out, err = capsys.readouterr()
        assert status or "warning" not in err, err
        return status, out if status == 0 else err

    return said


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A folder with a small byte model of a long context."""
    torch.manual_seed(0)
    Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=8, block_size=512, vocab_size=257)).save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


def scalars(run: Path) -> dict[str, tuple[int, float]]:
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: (board.Scalars(tag)[-1].step, board.Scalars(tag)[-1].value) for tag in board.Tags()["scalars"]}


def test_a_runs_own_corpora_are_judged_shown_and_kept(say: Say, trained: Path, tmp_path: Path) -> None:
    status, said = say("run=run", f"out={tmp_path / 'found.json'}")
    assert status == 0, said
    lines = said.splitlines()
    assert lines[0] == "run at step 2: perplexity, stride 64 of 64, documents joined"
    assert [line.split()[0] for line in lines[2:5]] == ["one", "two", "all"]
    result = json.loads((tmp_path / "found.json").read_text())
    figures = result["figures"]
    (validated,) = [row for row in lab.lines(lab.only_run(trained)) if "val/cross_entropy" in row]
    for name in ("one", "two"):  # but for the last row: a validation pads it, here it looks back as far as all others
        assert figures[name]["cross_entropy"] == pytest.approx(validated[f"val/{name}/cross_entropy"], rel=2e-2)
    assert figures["all"]["tokens"] == figures["one"]["tokens"] + figures["two"]["tokens"]
    assert figures["all"]["bytes"] == figures["all"]["tokens"] - 4  # documents, whose ends are tokens without bytes
    assert f"{figures['all']['perplexity']:,.4f}" in lines[4]
    assert (result["step"], result["settings"]["stride"]) == (2, None)
    tags = scalars(lab.only_run(trained))
    assert tags["evaluate/two/perplexity"] == (2, pytest.approx(figures["two"]["perplexity"]))
    assert tags["evaluate/all/bits_per_byte"][0] == 2
    assert "val/cross_entropy" in tags


def test_a_shorter_stride_knows_more(say: Say, trained: Path, tmp_path: Path) -> None:
    for stride in ("64", "7"):
        status, said = say("run=run", f"stride={stride}", "data=both", "documents=apart", "limit=1", f"out={tmp_path / stride}")
        assert status == 0, said
    found = {stride: json.loads((tmp_path / stride).read_text())["figures"] for stride in ("64", "7")}
    decoder = open_decoder(str(lab.only_run(trained)), trained).decoder
    texts = [BYTES.encode(documents(20)[9])]
    nats = measure(decoder, texts, 256, np.ones(257, int), 7).nats
    assert found["7"]["one"]["cross_entropy"] == pytest.approx(nats / len(texts[0]), rel=1e-6)
    assert found["64"]["one"]["tokens"] == found["7"]["one"]["tokens"] == len(texts[0])
    assert found["64"]["one"]["cross_entropy"] != found["7"]["one"]["cross_entropy"]


def test_a_file_of_text_is_judged(say: Say, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("One line.\n\nAnother, naïve, line.\n\nAnd more.")
    status, said = say("run=run", f"path={tmp_path / 'my.txt'}", "split=blank_line", "documents=apart", "limit=2")
    assert status == 0, said
    assert re.search(r"^my .* 30 +32$|^my .* (\d+) +\1$", said, re.M)


@pytest.mark.parametrize(("protocol", "records"), [("lambada", passages), ("hellaswag", questions)])
def test_records_are_judged(say: Say, small: str, tmp_path: Path, protocol: str, records: Callable) -> None:
    path = write(tmp_path / "records.jsonl", records())
    status, said = say(f"run={small}", f"protocol={protocol}", f"path={path}", f"out={tmp_path / 'found.json'}", "limit=9")
    assert status == 0, said
    figures = json.loads((tmp_path / "found.json").read_text())["figures"][protocol]
    assert figures["records"] == 9
    assert said.splitlines()[1].split() == [*" ".join(figures).replace("_", " ").split()]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_task_judges_any_decoder_on_records(say: Say, small: str, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mails.{ending}"
    if ending == "csv":
        path.write_text("body,kind\n" + "".join(f"Mail {i},{'spam' if i % 3 else 'ham'}\n" for i in range(12)))
    else:
        write(path, [{"body": f"Mail {i}", "kind": "spam" if i % 3 else "ham"} for i in range(12)])
    words = ("task=classification", f"path={path}", "task.x=body", "task.y=kind", "limit=9")
    status, said = say(f"run={small}", *words, f"out={tmp_path / 'found.json'}")
    assert status == 0, said
    result = json.loads((tmp_path / "found.json").read_text())
    figures, table = result["figures"]["task/classification"], result["confusion"]
    assert [sum(row) for row in table] == [3, 6] and figures["records"] == 9
    assert figures["accuracy"] == pytest.approx((table[0][0] + table[1][1]) / 9)
    assert figures["baseline_accuracy"] == pytest.approx(6 / 9)
    assert said.splitlines()[0] == f"{small}: task=classification" and "spam" in said.splitlines()[-1]


def test_a_run_in_training_keeps_its_board_to_itself(say: Say, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2_lightning.evaluation.command.living_holder", lambda _: "somebody")
    before = sorted((lab.only_run(trained) / "tensorboard").iterdir())
    with pytest.raises(AssertionError, match="is in training, so its TensorBoard does not get these figures"):
        say("run=run", "data=both", "limit=1")
    assert sorted((lab.only_run(trained) / "tensorboard").iterdir()) == before


BAD = [
    ((), 2, "run = ''): must be given. Set run=NAME"),
    (("run=run", "strid=3"), 2, "argument of evaluate (argument = strid=3): is not known. Did you mean stride?"),
    (("run=run", "stride=65"), 2, "stride = 65): must be at most the context, 64"),
    (("run=run", "stride=0"), 2, "must be at least 1"),
    (("run=run", "stride=x"), 2, "must be an integer"),
    (("run=run", "protocol=glue"), 2, "must be one of perplexity, lambada, hellaswag"),
    (("run=run", "data=both", "path=one.jsonl"), 2, "path = one.jsonl): excludes data"),
    (("run=run", "protocol=lambada", "stride=3"), 2, "stride = 3): has no meaning for protocol=lambada"),
    (("run=run", "hub=a/b"), 2, "hub = a/b): is for lambada and hellaswag"),
    (("run=run", "task=dialogu", "path=one.jsonl"), 2, "task = dialogu): no such task. There are dialogue"),
    (("run=run", "task=dialogue"), 2, "'run' was not trained on task=dialogue. Set path=FILE or data=NAME"),
    (("run=run", "task=lm", "path=one.jsonl"), 2, "task = lm): has no records to be judged"),
    (("run=run", "task.x=a"), 2, "task = None): is none, and its settings are given. Set task=NAME"),
    (("run=run", "task=dialogue", "path=one.jsonl", "task.turn=1"), 2, "task.turn = 1): no setting has this name"),
    (("run=run", "task=dialogue", "path=one.jsonl", "stride=3"), 2, "stride = 3): has no meaning for task=dialogue"),
    (("run=run", "task=dialogue", "path=one.jsonl", "task.x=a"), 3, "one.jsonl:1): has no field 'a'; it has text"),
    (("run=run", "task=dialogue", "protocol=lambada"), 2, "task = dialogue): excludes protocol=lambada"),
    (("run=run", "data=bth"), 2, "data = bth): no such data. There are both"),
    (("run=run", "path=on.jsonl"), 3, "corpus (path = on.jsonl): does not exist"),
    (("run=run", "path=one.jsonl", "field=body"), 3, "one.jsonl:1): has no field 'body'"),
    (("run=run", "protocol=lambada", "path=bad.jsonl"), 3, "record (line = bad.jsonl:2): is not JSON"),
    (("run=run", "protocol=lambada", "path=list.jsonl"), 3, "record (line = list.jsonl:1): is no object but list"),
    (("run=run", "protocol=lambada", "path=empty.jsonl"), 3, "records (path = empty.jsonl): there are none"),
    (("run=run", "protocol=lambada", "path=long.jsonl"), 3, "at most block_size = 64 tokens long, got 101"),
    (("run=run", "path=empty.jsonl"), 3, "corpus (corpus = empty): holds no text to evaluate on"),
    (("run=nobody",), 4, "run (run = nobody): has no checkpoint. There are run"),
    (("run=run", "accelerator=gpu"), 7, "GPU (accelerator = gpu): none is available to torch"),
    (("run=run", "out=no/where.json"), 8, "output (out = no/where.json): cannot be written"),
]


@pytest.mark.parametrize(("words", "status", "message"), BAD)
def test_what_is_wrong_is_said_in_a_line(
    say: Say, trained: Path, words: tuple[str, ...], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (trained / "bad.jsonl").write_text('{"text": "a b"}\n{"text": \n')
    (trained / "list.jsonl").write_text("[1]\n")
    (trained / "empty.jsonl").write_text("\n")
    write(trained / "long.jsonl", [{"text": "a " + "b" * 100}])
    found, said = say(*words)
    assert found == status
    assert message in said
    assert said.count("\n") == 1


def test_weights_without_a_run_need_a_text(say: Say, small: str) -> None:
    status, said = say(f"run={small}")
    assert status == 2
    assert "is no run of ours, with corpora of its own. Set path=FILE or data=NAME" in said


JUDGE = """
import sys
from gpt2_lightning.__main__ import main
for protocol in ("lambada", "hellaswag"):
    status = main(["evaluate", "run=small", f"protocol={protocol}", "limit=8", f"out={protocol}.json"])
    assert status == 0
"""


def test_records_come_from_the_hub_as_json_lines_or_parquet(small: str, here: Path) -> None:
    write(here / "passages.jsonl", passages())
    write(here / "questions.jsonl", questions())
    pq.write_table(pa.Table.from_pylist([q | {"label": str(q["label"])} for q in questions()]), here / "questions.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files: [{split: %s, path: data/*}]\n---\n"
    hub = {
        "EleutherAI/lambada_openai": {
            "README.md": (card % "test").encode(),
            "data/lambada_test.jsonl": (here / "passages.jsonl").read_bytes(),
        },
        "Rowan/hellaswag": {
            "README.md": (card % "validation").encode(),
            "data/validation.parquet": (here / "questions.parquet").read_bytes(),
        },
    }
    with serve(hub) as (address, _):
        env = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(here / "hf")}
        done = subprocess.run([sys.executable, "-c", JUDGE], env=env, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    for protocol, name in (("lambada", "passages"), ("hellaswag", "questions")):
        assert main(["evaluate", "run=small", f"protocol={protocol}", "limit=8", f"path={name}.jsonl", "out=local.json"]) == 0
        found = [json.loads((here / file).read_text())["figures"] for file in (f"{protocol}.json", "local.json")]
        assert found[0] == found[1]
