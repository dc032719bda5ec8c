"""A trial: a run, and behind it the decode-time candidates scored on what it has trained.

In: a RunConfig, and the candidates of ``score=FILE``. Out: the run's folder, with scores.json: a candidate and its measures
each.
One number: 1 training for all candidates: they do not touch the weights. Choice not taken: a process for each candidate.
"""

import json
from pathlib import Path
from typing import Any

from gpt2_lightning import run
from gpt2_lightning.config import RunConfig
from gpt2_lightning.folder import runs_folder, write_whole
from gpt2_lightning.generation.measures import choose_rows, measure_generation
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.signals import Signals
from gpt2_lightning.trained import find_run, load_decoder
from gpt2_lightning.trainer import choose_devices
from gpt2_lightning.world import is_other_rank

__all__ = ["trial"]

SCORES = "scores.json"


def trial(config: RunConfig, score: Path | None, trained: Path | None, signals: Signals) -> None:
    """Train, or take what is ``trained``, and score. Raises PlatformError."""
    if trained is None:
        run.train(config, signals)
    if score is None or is_other_rank(config.trainer):
        return
    signals.armed = False
    folder = runs_folder(config) / config.run.id
    folder.mkdir(parents=True, exist_ok=True)
    asked = json.loads(score.read_text(encoding="utf-8"))
    if not scored(folder, asked):
        found = score_candidates(config, trained or folder, asked)
        write_whole(folder / SCORES, json.dumps(found, indent=1) + "\n")


def scored(folder: Path, asked: dict[str, Any]) -> bool:
    """Whether these candidates have their measures already."""
    try:
        there = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        return [row["candidate"] for row in there] == asked["candidates"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def score_candidates(config: RunConfig, trained: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The measures of each candidate, all on the same rows of held-out text with the same seed."""
    decoder, _ = load_decoder(find_run(str(trained), Path(config.run.folder)))
    decoder.to("cuda" if choose_devices(config.trainer.accelerator, 1) == "gpu" else "cpu")
    data = run.open_data(config)
    rows = choose_rows([inputs for inputs, _ in data.validation], asked["rows"], config.seed)
    found = []
    for candidate, settings in zip(asked["candidates"], asked["samplers"], strict=True):
        measures = measure_generation(decoder, rows, SamplerConfig(**settings), asked["tokens"], config.seed, batch_size=32)
        found.append({"candidate": candidate, "measures": measures})
    return found
