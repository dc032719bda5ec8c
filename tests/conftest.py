"""What several tests share: a small corpus, composed settings, and a way to run the command line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

# Types are checked in all of the package. Shapes too where there are any: jaxtyping's own way through each call costs ten times
# beartype's, which a run with its many small functions feels.
(PACKAGE,) = map(Path, find_spec("gpt2_lightning").submodule_search_locations)  # type: ignore[union-attr, arg-type]
SHAPED = [path for path in PACKAGE.rglob("*.py") if re.search("jaxtyping|TYPE_CHECKING", path.read_text())]
install_import_hook([".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SHAPED], "beartype.beartype")
beartype_package("gpt2_lightning")

# Two trainings of two threads each, on two cores, take up to ten times as long as of one each.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker's share of the tests, which are handed out in order, begins with the long ones: none is left to the end."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    quick, slow = ([item for item in items if ("slow" in item.keywords) is long] for long in (False, True))
    share = -(-len(quick) // workers)
    items[:] = [item for i in range(workers) for item in (*slow[i::workers], *quick[i * share : (i + 1) * share])]


@pytest.fixture
def command(process: Command, forked: Command) -> Command:
    """As ``forked`` runs it; on a machine with a GPU as ``process``, for a fork cannot use one that its parent has seen."""
    return process if torch.cuda.is_available() else forked


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Run ``python -m gpt2_lightning`` with the given words in an empty folder."""

    def run(*words: str, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpt2_lightning", *words],
            cwd=cwd,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def forked(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run the command in a fork of this process, which saves it, and the trials of a study, Python's start."""
    from tests import lab

    def run(*words: str, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        said = tmp_path_factory.mktemp("said")
        logs = {"log": str(said / "out"), "errors": str(said / "err")}
        status = lab.finish(lab.start(words, cwd, lab.fork_trials, **logs, **env), 300)
        return subprocess.CompletedProcess(words, status, (said / "out").read_text(), (said / "err").read_text())

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
