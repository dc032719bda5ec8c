"""Folders of studies and runs as the engine leaves them, of any shape: what is asked for in, the files out."""

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

CE = "val/cross_entropy"
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>](javascript:alert(1)) [x](javascript:alert(1)) "
    "\"'`\n# |$x_1$ ${{7*7}} %{x} <b>&lt; \x1b[2J\u202e"
)
LR, BETA = "optimizer.lr", "loss.beta"
SPACE = {LR: FloatDistribution(1e-4, 1e-1, log=True), BETA: FloatDistribution(0, 0.05)}
Trial = dict[str, Any]


def trial(place: int | None, state: str = "complete", value: Any = None, **more: Any) -> Trial:
    """One trial of the record, its settings a function of its place."""
    n = place or 0
    params = more.pop("params", {LR: 10 ** (-4 + 3 * (n * 0.618 % 1)), BETA: 0.05 * (n * 0.414 % 1)})
    space = more.pop("space", SPACE)
    if value is None and state in ("complete", "pruned"):
        value = 2 + (math.log10(params.get(LR, 3e-3) / 3e-3)) ** 2 / 4 + 4 * (params.get(BETA, 0) or 0)
    values = value if isinstance(value, dict) else {CE: value} if state == "complete" else {}
    steps = more.pop("steps", {"complete": 40, "pruned": 10}.get(state, 0))
    first = value if isinstance(value, int | float) else values.get(CE)
    begun = datetime(2026, 1, 2, 3, 4) + timedelta(seconds=60 * (n // 2))
    over = state in ("complete", "pruned", "failed")
    why, reason = more.pop("why", "diverged" if state == "failed" else ""), more.pop("reason", "")
    outcome = {"values": values, "state": state, "class": why, "reason": reason, "steps": steps, "seconds": 50.5, "broken": []}
    made = {
        "name": f"trial-{n:03d}",
        "place": place,
        "state": state,
        "class": why,
        "values": values,
        "point": dict(params),
        "beside": {},
        "steps": steps,
        "outcome": outcome if over else {},
        "params": params,
        "distributions": {name: distribution_to_json(space[name]) for name in params},
        "reports": {str(s): first + 20 / s for s in range(5, steps + 1, 5)} if first is not None else {},
        "attempts": 1,
        "agent": f"host.{7 + n % 2}.1",
        "started": begun.isoformat(),
        "ended": (begun + timedelta(seconds=50)).isoformat() if over else None,
    }
    return made | more


def study(folder: Path, trials: list[Trial], scores: bool = True, **more: Any) -> Path:
    """The folder of a study with these trials."""
    folder.mkdir(parents=True)
    record = {
        "study": folder.name,
        "words": ["+experiment=quickstart", "+sweeps=lr"],
        "objectives": [CE],
        "directions": ["minimize"],
        "n_trials": len(trials),
        "sampler": "tpe",
        "pruner": "halving",
        "decode_objective": "generation/perplexity_gap",
        "decode_direction": "minimize",
        "baseline": "trial-000",
        "space": {LR: "tag(log, interval(0.0001, 0.1))", BETA: "interval(0, 0.05)"},
        "decode": {"sampler.k": "choice(1, 8, null)"} if scores else {},
        "constraints": {},
        "max_steps": 40,
        "trials": trials,
    }
    (folder / "study.json").write_text(json.dumps(record | more, allow_nan=False))
    for i, one in enumerate(trials):
        if scores and one["state"] == "complete":
            (folder / one["name"]).mkdir()
            found = [
                {"candidate": {"sampler.k": k}, "measures": {"generation/perplexity_gap": abs((k or 50) - 8) / 10 + 0.01 * i}}
                for k in (1, 8, None)
            ]
            (folder / one["name"] / "scores.json").write_text(json.dumps(found))
            (folder / one["name"] / "samples.txt").write_text("To be, or not to be\n")
    return folder


def run(folder: Path, steps: int = 40, finished: bool = True, samples: str = "To be\n", **changes: Any) -> Path:
    """The folder of a run."""
    folder.mkdir(parents=True)
    config = {
        "seed": 1,
        "run": {"name": folder.parent.name, "id": folder.name},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_steps": 40},
    }
    config |= changes
    (folder / "config.yaml").write_text(yaml_of(config))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(5, steps + 1, 5):
            train = {
                "train/cross_entropy": 5 / step + 2,
                "optimizer/learning_rate": 0.01 / step,
                "optimizer/gradient_norm": 1.0,
                "speed/tokens_per_second": 1000.0 + step,
                "speed/peak_memory": 2.0**28,
            }
            file.write(json.dumps({"step": step, "tokens": step * 64, **train}) + "\n")
            file.write(json.dumps({"step": step, "tokens": step * 64, CE: 5 / step + 2.5, "val/bits_per_byte": 3.5}) + "\n")
    if finished:
        best = {CE: 5 / steps + 2.5}
        result = {"state": "finished", "parameters": 5184, "steps": steps, "seconds": 61.2, "best": best}
        (folder / "result.json").write_text(json.dumps(result))
    (folder / "samples.txt").write_text(samples)
    return folder


def yaml_of(tree: dict[str, Any], indent: str = "") -> str:
    """YAML, of values as JSON."""
    lines = []
    for key, value in tree.items():
        lines.append(
            f"{indent}{key}:\n{yaml_of(value, indent + '  ')}"
            if isinstance(value, dict)
            else f"{indent}{key}: {json.dumps(value)}\n"
        )
    return "".join(lines)


def mixed(n: int) -> list[Trial]:
    """Complete, pruned and failed trials, the first complete."""
    states = ["complete", "pruned", "complete", "pruned", "failed"]
    return [trial(i, states[i % 5], reason="loss: is not finite" if states[i % 5] == "failed" else "") for i in range(n)]


def choosy(i: int) -> Trial:
    """A space with a condition and a choice that may be nothing."""
    space = {
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
        f"{LR} (optimizer=sgd)": FloatDistribution(1e-2, 1, log=True),
        f"{LR} (optimizer=adam)": FloatDistribution(1e-4, 1e-2, log=True),
        "model.attention_window": CategoricalDistribution([None, 8, 16]),
        "model.n_layer": IntDistribution(1, 4),
    }
    kind = "sgd" if i % 2 else "adam"
    params = {
        "optimizer": kind,
        f"{LR} (optimizer={kind})": (0.1 if i % 2 else 0.001) * (1 + i / 10),
        "model.attention_window": [None, 8, 16][i % 3],
        "model.n_layer": 1 + i % 4,
    }
    return trial(i, params=params, space=space, value=3 - i / 10)


CASES: dict[str, Callable[[Path], Path]] = {
    "none": lambda f: study(f, [], n_trials=8),
    "none finished": lambda f: study(f, [trial(0, "running"), trial(1, "running")], n_trials=8),
    "one": lambda f: study(f, [trial(0)], n_trials=8),
    "two": lambda f: study(f, [trial(0), trial(1)]),
    "failures": lambda f: study(f, [trial(i, "failed", why=["diverged", "error"][i % 2], reason="no") for i in range(5)]),
    "pruned": lambda f: study(f, [trial(i, "pruned") for i in range(5)]),
    "mixed": lambda f: study(f, mixed(20)),
    "equal": lambda f: study(f, [trial(i, value=2.0) for i in range(6)]),
    "choices": lambda f: study(f, [choosy(i) for i in range(12)]),
    "two objectives": lambda f: study(
        f,
        [trial(i, value={CE: 2 + i / 10, "seconds": 9.0 - i % 4}) for i in range(9)],
        objectives=[CE, "seconds"],
        directions=["minimize", "minimize"],
    ),
    "four objectives": lambda f: study(
        f,
        [trial(i, value={CE: 2 + i / 10, "a": 9.0 - i % 4, "b": 1.0, "c": i / 3}) for i in range(9)],
        objectives=[CE, "a", "b", "c"],
        directions=["minimize", "maximize", "minimize", "maximize"],
    ),
    "maximize": lambda f: study(
        f, [trial(i, value={"val/accuracy": i / 10}) for i in range(9)], objectives=["val/accuracy"], directions=["maximize"]
    ),
    "no space": lambda f: study(f, [trial(0, params={})], space={}),
    "outside": lambda f: study(f, [trial(0, params={}, point={LR: 9.0}), *(trial(i) for i in range(1, 8))]),
    "broken": lambda f: study(
        f,
        [trial(0), trial(1) | {"outcome": trial(1)["outcome"] | {"broken": ["seconds"]}}, *map(trial, range(2, 8))],
        constraints={"seconds": 60},
    ),
}
