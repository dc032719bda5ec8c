"""How long until the command line answers, until a run of three steps is over, and how much longer is it behind others?

In: commands as a person types them, each a process of its own. Out: ratios of their seconds to those of a bare Python,
of importing torch, and of importing Lightning; and what three steps behind a checkpoint take beyond three fresh ones.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from contest import contest, difference, print_ratios, ratios, write_report

MAIN = ["-m", "gpt2_lightning"]
NANO = [*MAIN, "model=nano", "debug=fast_dev_run", "resume_allow=[trainer,schedule]"]
POSITIONS = (10, 1000)  # steps before the three
QUICKSTART = ["-m", "gpt2_lightning", "+experiment=quickstart", "debug=fast_dev_run"]
COMMANDS = {  # what Python is given, and the exit status it has to end with
    "python": (["-c", "pass"], 0),
    "import_torch": (["-c", "import torch"], 0),
    "import_lightning": (["-c", "import lightning.pytorch"], 0),
    "import_gpt2_lightning": (["-c", "import gpt2_lightning"], 0),
    "help": (["-m", "gpt2_lightning", "--help"], 0),
    "list": (["-m", "gpt2_lightning", "list"], 0),
    "config_error": (["-m", "gpt2_lightning", "+experiment=quickstart", "optimizer.lr=fast"], 2),
    "fast_dev_run": (QUICKSTART, 0),
}
PAIRS = [
    ("import_gpt2_lightning", "python"),
    ("help", "python"),
    ("list", "python"),
    ("config_error", "python"),
    ("help", "import_torch"),
    ("list", "import_torch"),
    ("config_error", "import_torch"),
    ("fast_dev_run", "import_torch"),
    ("fast_dev_run", "import_lightning"),
    ("generate", "import_torch"),
]


def main() -> None:
    """Run the contest and report it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count; one more is warm-up")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = COMMANDS | {"fresh": (NANO, 0)} | {f"behind_{n}": (going_on(n, folder), 0) for n in POSITIONS}
        commands["generate"] = ([*MAIN, "generate", "run=run", "prompt=To be", "max_new_tokens=1"], 0)
        seconds = contest({name: child(*command, folder) for name, command in commands.items()}, args.rounds)
    found = ratios(seconds, PAIRS)
    print_ratios(found)
    later = {name: difference(seconds, name, "fresh") for name in commands if name.startswith("behind")}
    for name, ms in later.items():
        print(f"{name} - fresh: {ms['median_ms']:.0f} ms, quartiles {ms['quartile_1']:.0f} to {ms['quartile_3']:.0f}")
    write_report(args.json, vars(args), seconds=seconds, ratios=found, later=later)


def going_on(steps: int, folder: str) -> list[str]:
    """Train so many steps, and return the command for three more in a run of its own."""
    name = f"run.id=first_{steps}"
    child([*NANO, f"trainer.max_steps={steps}", f"trainer.val_every={steps}", name], 0, folder)()
    return [*NANO, f"trainer.max_steps={steps + 3}", f"resume=outputs/runs/run/first_{steps}"]


def child(words: list[str], status: int, folder: str) -> Callable[[], float]:
    """A contender: the seconds of one process started in ``folder``; raises RuntimeError on another exit status."""

    def play() -> float:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode != status:
            raise RuntimeError(f"{words} must end with {status}, got {done.returncode}: {done.stderr}")
        return seconds

    return play


if __name__ == "__main__":
    main()
