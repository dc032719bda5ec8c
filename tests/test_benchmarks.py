"""The benchmarks run and print their ratios; what they find is not tested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train_step.py", "--model", "nano", "--rounds", "1", "--steps", "2"], "transformers/ours"),
        (
            ["train_step.py", "--model", "nano", "--rounds", "1", "--steps", "2", "--apart", "--contenders", "textbook"],
            "textbook/ours",
        ),
        (["saving.py", "--model", "nano", "--rounds", "1"], "save/write"),
        (["penalty.py", "--model", "nano", "--rounds", "1"], "penalty/step"),
        (
            [
                "generate.py",
                "--model",
                "tiny",
                "--rounds",
                "1",
                "--new",
                "8",
                "--contenders",
                "ours",
                "ours_int8",
                "transformers",
            ],
            "transformers/ours",
        ),
        (["generate.py", "--model", "tiny", "--rounds", "1", "--new", "8", "--precision", "bf16"], "ours_bfloat16: "),
        (["logging.py", "--models", "nano", "--rounds", "1", "--steps", "50", "--trials", "20"], "20 trials: written in"),
        (["stream.py", "--rounds", "1", "--megabytes", "8"], "text / tiktoken"),
        (["traffic.py", "--stream", "1e6"], "| 124M | 8 | 65536 | 141.7 | 1.9 |"),
        (["slots.py", "--slots", "2", "--rounds", "2", "--seconds", "1"], "slots | trials | ended early"),
    ],
)
def test_a_benchmark_prints_its_ratios(tmp_path: Path, words: list[str], line: str) -> None:
    script = str(BENCHMARKS / words[0])
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
