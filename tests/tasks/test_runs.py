"""Tasks in whole runs: what a run logs of one, a conversation with it, a sweep by its measure, and a task of your own."""

import json
import re
from pathlib import Path

import pytest

from gpt2_lightning.config import compose_config
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.sweep.plan import measured, read_plan
from tests.conftest import Command

DOCS = Path(__file__).parents[2] / "docs"
SHORT = ("data=local", "model=nano", "trainer=cpu", "trainer.max_steps=4", "trainer.val_every=2", "data.batch_size=4",
         "samples.max_new_tokens=0", "run.name=mine")  # fmt: skip


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_judged_by_its_task_and_talks(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "talk.jsonl", [{"turns": [f"How is {i}?", f"It is {i}.", "Good."]} for i in range(40)])
    done = command("task=dialogue", "data.path=talk.jsonl", "task.speakers=[You,Me]", "task.max_new_tokens=8", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs/runs/mine").glob("*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"task/reply_perplexity", "task/alone_perplexity"} <= set(rows[-1])
    assert json.loads((run / "result.json").read_text())["last"]["task/reply_perplexity"] > 1
    assert json.loads((run / "task.json").read_text())["step"] == 4
    judged = command("evaluate", "run=mine", "task=dialogue", "out=found.json")
    assert judged.returncode == 0, judged.stderr
    figures = json.loads((tmp_path / "found.json").read_text())["figures"]["task/dialogue"]
    assert {f"task/{name}": value for name, value in figures.items() if name != "records"} == pytest.approx(
        {name: value for name, value in rows[-1].items() if name.startswith("task/")}
    )
    said = command("generate", "run=mine", "prompt=How is 3?", "max_new_tokens=5")
    assert said.returncode == 0 and said.stdout.startswith("Me:") and said.stdout.count("\n") == 1, said.stderr
    plain = command("generate", "run=mine", "prompt=How is 3?", "max_new_tokens=5", "chat=false")
    assert plain.stdout.startswith("How is 3?")
    assert command("generate", "run=mine", "prompt=a", "chat=perhaps").returncode == 2


@pytest.mark.slow
def test_the_task_of_the_documentation_runs(command: Command, tmp_path: Path) -> None:
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    (code,), (config,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "yaml"))
    assert len(code.splitlines()) <= 20
    (tmp_path / "rhyme.py").write_text(code)
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/rhyme.yaml").write_text(config)
    write(tmp_path / "rhymes.jsonl", [{"lines": [f"The cat {i}", f"the hat {i}"]} for i in range(60)])
    done = command("task=rhyme", "data.path=rhymes.jsonl", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs/runs/mine").glob("*")
    assert "task/rhymes" in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    unnamed = command("evaluate", "run=mine", "task=rhyme")
    assert unnamed.returncode == 2 and "Add task.file=rhyme.py" in unnamed.stderr
    named = command("evaluate", "run=mine", "task=rhyme", "task.file=rhyme.py")
    assert named.returncode == 0 and "rhymes" in named.stdout, named.stderr
    (tmp_path / "rhyme.py").write_text("x = 1 / 0")
    broken = command("task=rhyme", "data.path=rhymes.jsonl", *SHORT, "seed=2")
    assert broken.returncode == 2 and "cannot be run: ZeroDivisionError" in broken.stderr


def test_the_measures_of_a_task_are_objectives(here: Path) -> None:
    words = ["task=classification", "data=local", "data.path=a.jsonl", "sweep.n_trials=2", "optimizer.lr=interval(1e-4, 1e-2)"]
    assert "task/accuracy" in measured(compose_config(words[:3]))
    plan = read_plan([*words, "sweep.objective=task/accuracy", "sweep.direction=maximize"])
    assert plan.sweep.objectives == ["task/accuracy"]
    with pytest.raises(ConfigError, match="'task/bleu' is not measured"):
        read_plan([*words, "sweep.objective=task/bleu"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.records=false", "data.records = False.*a row holds whole records"),
        ("model.document_mask=false", "no record sees another"),
        ("data.cache=true", "records are kept as text"),
        ("task.name=other", "must be one of lm, classification"),
    ],
)
def test_what_a_task_of_records_needs_is_asked_for(here: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose_config(["task=classification", "data=local", "data.path=a.jsonl", change])
