"""What the README says to type works, with a few steps, trials and documents instead of many."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Command

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [shlex.split(line, comments=True) for block in BASH for line in block.splitlines()]
SHORT = ["debug=fast_dev_run", "data.batch_size=2"]


def shorter(words: list[str]) -> list[str]:
    """What to add to a command for it to do little."""
    if words[0] == "evaluate":
        return ["limit=2"]
    if words[0] in ("list", "generate", "data", "report", "export") or "--cfg" in words:
        return []
    if any("best=" in word for word in words):
        return ["trainer.max_steps=2"]
    return [*SHORT, "sweep.n_trials=2"] if any("sweeps=" in word for word in words) else SHORT


@pytest.mark.slow
def test_the_commands_of_the_readme_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("\n\n".join(f"This is paragraph {n}, and it says little." for n in range(40)))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "To be"}\n')
    assert len(COMMANDS) >= 7
    for words in COMMANDS:
        assert words[:3] == ["python", "-m", "gpt2_lightning"]
        done = command(*words[3:], *shorter(words[3:]))
        assert done.returncode == 0, (words, done.stderr)


def test_the_corpora_of_the_readme_train(command: Command, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text(block)
    (tmp_path / "notes").mkdir()
    for n in range(2):
        (tmp_path / f"notes/{n}.txt").write_text("\n\n".join(f"Note {n}.{i} says this and that." for i in range(30)))
    letters = "".join(json.dumps({"body": f"Dear {i}, all is well here."}) + "\n" for i in range(30))
    (tmp_path / "letters.jsonl.gz").write_bytes(gzip.compress(letters.encode()))
    done = command("data=mine", *SHORT, "model=nano")
    assert done.returncode == 0, done.stderr


def test_the_python_of_the_readme_runs() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, {})


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_the_links_of_the_readme_lead_somewhere(target: str) -> None:
    assert target.startswith("http") or (Path(__file__).parents[1] / target).exists()
