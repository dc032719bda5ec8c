"""The plan of the house: nothing below imports from above, each framework is known in few rooms, and the wheel is whole."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

import gpt2_lightning
from gpt2_lightning.data.chance import keyed_hash
from gpt2_lightning.decoder import Decoder, DecoderConfig
from tests.conftest import Command

SOURCE = Path(gpt2_lightning.__file__).parent
ROOT = Path(__file__).parents[1]
ROOMS = {
    "hydra": {"config", "flags", "sweep.space"},
    "omegaconf": {"config", "variants"},
    "lightning": {"checkpoint_io", "module", "data.stream", "run", "dashboard", "keeper", "strategy", "trainer"},
    "optuna": {
        "report.charts",
        "servers",
        "sweep.agent",
        "sweep.held",
        "sweep.ledger",
        "sweep.outcome",
        "sweep.proposals",
        "sweep.space",
        "sweep.storage",
        "sweep.summary",
    },
    "plotly": {"report.charts"},
    "matplotlib": {"report.charts"},
    "sqlalchemy": {"sweep.storage"},
    "datasets": {"data.hub"},
    "tensorboard": {"board", "servers"},
    "tiktoken": {"data.tokens"},
    "safetensors": {"checkpoint", "weights"},
    "transformers": set(),
    "lm_eval": {"evaluation.harness"},
    "huggingface_hub": {"data.hub", "pretrained"},
    "ray": {"sweep.cluster"},
    "submitit": {"slurm"},
    "sacrebleu": {"tasks.translation"},
}
HEIGHT = ["errors", "processor", "settings", "world", "config", "variants", "flags", "lock", "signals", "folder",
          "report", "servers", "weights", "decoder", "shards", "loss", "optimizer", "metrics", "text_metrics", "tasks",
          "checkpoint", "checkpoint_io", "trained", "nanogpt", "pretrained", "data", "generation", "export", "guard",
          "module", "board", "evaluation", "inspection", "dashboard", "ranks", "keeper", "strategy", "trainer", "run",
          "trial", "study_board", "sweep", "slurm", "__main__"]  # fmt: skip


def modules() -> dict[str, set[str]]:
    """Every module's name and what it imports, wherever in the file."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if "assets" in name or name == "__init__":
            continue
        imports: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = imports
    return found


@pytest.mark.parametrize("framework", ROOMS)
def test_each_framework_is_known_in_few_rooms(framework: str) -> None:
    rooms = {n for n, found in modules().items() if any(i.split(".")[0] == framework or f".{framework}" in i for i in found)}
    assert rooms == ROOMS[framework]


def test_nothing_below_imports_from_above() -> None:
    for name, imports in modules().items():
        for target in imports:
            if target.startswith("gpt2_lightning."):
                part = target.split(".")[1]
                assert HEIGHT.index(part) <= HEIGHT.index(name.split(".")[0]), f"{name} imports {target}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, gpt2_lightning; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_wheel_alone_runs_the_quickstart(tmp_path: Path, command: Command) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("conf/config.yaml", "sweeps/FINDINGS.md", "assets/shakespeare.jsonl", "assets/gpt2.tiktoken.gz"):
        assert f"gpt2_lightning/{wanted}" in names
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = command("+experiment=quickstart", "debug=fast_dev_run", cwd=empty, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert (empty / "outputs/runs/quickstart").is_dir()
    where = subprocess.run(
        [sys.executable, "-c", "import gpt2_lightning; print(gpt2_lightning.__file__)"],
        cwd=empty, env={"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))


def test_no_source_file_is_long() -> None:
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path


def test_what_the_tests_call_is_checked_for_types_and_shapes() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        keyed_hash("1")  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9, block_size=8))(torch.zeros(8, dtype=torch.int64))
