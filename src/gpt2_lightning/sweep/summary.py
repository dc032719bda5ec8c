"""What comes out of a study: its trainings in; trials.csv, decode.csv, best.yaml, study.json and a summary for a terminal out.

One number: 5 runner-ups are named. Choice not taken: Optuna's own best trial, for the reason that report.ranking gives.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

from gpt2_lightning.config import RunConfig, load_config, to_yaml
from gpt2_lightning.folder import write_whole
from gpt2_lightning.report import ranking
from gpt2_lightning.report.ranking import Row
from gpt2_lightning.report.record import RECORD
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.sweep.ledger import Root
from gpt2_lightning.sweep.outcome import read_scores
from gpt2_lightning.sweep.plan import Plan
from gpt2_lightning.sweep.storage import redacted

__all__ = ["front", "rank", "short", "shown", "summary", "write_record", "write_tables"]

RUNNER_UPS, OF_FRONT = 5, 10


def rank(rows: list[Row], plan: Plan) -> list[Row]:
    """The fit ones, best first by the first objective; of equals the older."""
    return ranking.rank(rows, plan.sweep.objectives, plan.sweep.directions)


def front(rows: list[Row], plan: Plan) -> list[Row]:
    """The fit ones that no other is better than in all objectives (the Pareto front)."""
    return ranking.front(rows, plan.sweep.objectives, plan.sweep.directions)


def write_tables(rows: list[Row], plan: Plan) -> None:
    """trials.csv and decode.csv; best.yaml, or the front's, where there is a best."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    objectives = plan.sweep.objectives
    best = front(rows, plan) if len(objectives) > 1 else rank(rows, plan)[:1]
    names = {row.name for row in best}
    heads = ["trial", "state", "best", *objectives, "steps", "seconds", "class", "reason", *keys, "decode", "folder"]
    table = [
        [row.name, row.state, int(row.name in names), *(row.values.get(name, "") for name in objectives), row.steps,
         row.outcome.get("seconds", ""), row.why, row.outcome.get("reason", ""), *(plain(row.point.get(key)) for key in keys),
         plain(row.outcome.get("decode", {}).get("candidate", "")), row.outcome.get("folder", "")]
        for row in rows
    ]  # fmt: skip
    write_whole(plan.folder / "trials.csv", as_csv([heads, *table]))
    write_decode(rows, plan)
    if len(objectives) == 1 and best:
        write_whole(plan.folder / "best.yaml", best_yaml(best[0], plan))


def write_decode(rows: list[Row], plan: Plan) -> None:
    """decode.csv: every candidate's measures on every trained model."""
    scored = [(row, one) for row in rows if row.state == "complete" for one in read_scores(plan.folder / row.name)]
    if not scored:
        return
    keys = list(dict.fromkeys(key for _, score in scored for key in score["candidate"]))
    measures = list(dict.fromkeys(name for _, score in scored for name in score["measures"]))
    lines = [
        [row.name, *(plain(score["candidate"].get(key)) for key in keys), *(score["measures"].get(m, "") for m in measures)]
        for row, score in scored
    ]
    write_whole(plan.folder / "decode.csv", as_csv([["trial", *keys, *measures], *lines]))


def as_csv(lines: list[list[Any]]) -> str:
    """Comma-separated text."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def plain(value: Any) -> Any:
    """A value as a cell of a table."""
    return json.dumps(value) if isinstance(value, list | dict) else "" if value is None else value


def best_yaml(row: Row, plan: Plan) -> str:
    """The settings of a training, its best decode-time settings among them, as a run of its own."""
    config = settings_of(str(plan.folder / "configs" / f"{row.name}.yaml"))
    settings = row.outcome.get("decode", {}).get("sampler")
    config = replace(
        config,
        run=replace(config.run, study="", name=f"{plan.sweep.name}-best", id="auto"),
        sampler=SamplerConfig(**settings) if settings else config.sampler,
    )
    values = ", ".join(f"{name} = {value!r}" for name, value in row.values.items())
    return (
        f"# {plan.sweep.name}, {row.name}: {values}\n# python -m gpt2_lightning train best={plan.sweep.name}\n{to_yaml(config)}"
    )


@lru_cache(maxsize=1)
def settings_of(file: str) -> RunConfig:
    """A trial's settings. The best is written often and read slowly, and its file never changes."""
    return load_config(file, [])


def write_record(roots: list[Root], plan: Plan) -> None:
    """study.json: all that a report, dashboards and lists need. They never read the storage, which may be far away, or busy."""
    s = plan.sweep
    record = {
        "study": s.name,
        "words": [redacted(word) for word in plan.words],
        "objectives": s.objectives,
        "directions": s.directions,
        "n_trials": plan.n_trials,
        "sampler": s.sampler,
        "pruner": s.pruner,
        "decode_objective": s.decode_objective,
        "decode_direction": s.decode_direction,
        "baseline": "trial-000" if plan.is_baseline(0) else None,
        "space": plan.space.as_asked(),
        "decode": plan.decode.as_asked(),
        "constraints": dict(s.constraints),
        "max_steps": plan.base.trainer.max_steps,
        "trials": [trial_record(root) for root in roots],
    }
    write_whole(plan.folder / RECORD, json.dumps(record, allow_nan=False) + "\n")


def trial_record(root: Root) -> dict[str, Any]:
    """One training: what is in trials.csv, and what Optuna's plots are made of."""
    row, trial = root.row, root.last
    return {
        "name": row.name,
        "place": row.place,
        "state": row.state,
        "class": row.why,
        "values": row.values,
        "point": row.point,
        "beside": row.beside,
        "steps": row.steps,
        "outcome": {key: value for key, value in row.outcome.items() if key not in ("log", "folder", "fingerprint")},
        "params": trial.params,
        "distributions": {name: distribution_to_json(d) for name, d in trial.distributions.items()},
        "reports": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "attempts": len(root.attempts),
        "agent": trial.user_attrs.get("agent"),
        "started": trial.datetime_start.isoformat() if trial.datetime_start else None,
        "ended": trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    }


def summary(rows: list[Row], plan: Plan) -> str:
    """Best against baseline, the runner-ups, what was pruned and saved, failures by class, where everything is."""
    ranked, own = rank(rows, plan), [row for row in rows if row.place is not None]
    single = len(plan.sweep.objectives) == 1
    best = ranked[:1] if single else front(rows, plan)
    others = [row for row in ranked if row not in best][:RUNNER_UPS]
    counts = ", ".join(f"{n} {state}" for state, n in sorted(Counter(row.state for row in own).items()))
    lines = [f"study {plan.sweep.name}: {counts or 0} of {plan.n_trials} trials"]
    lines += best_lines(best, ranked, plan) if best else ["no trial is complete"]
    lines += ["runner-ups", *(f"  {described(row, plan)}" for row in others)] if others else []
    if found := ranking.saved(own):
        lines.append(f"pruned    {found}")
    lines += [f"failed    {n} {why}, such as {row.name}: {reason}" for why, n, row, reason in ranking.failures(own)]
    if confirmed := ranking.confirmed(rows, plan.sweep.objectives[0]):
        lines.append(f"{confirmed[0]} fresh seeds  {confirmed[1]}")
    tables = "trials.csv, best.yaml" if best and single else "trials.csv"
    lines += ["", f"folder  {shown(plan.folder)}  ({tables}, a folder a trial)"]
    if best and single:
        lines += ["go on with", f"  python -m gpt2_lightning train best={plan.sweep.name}"]
    return "\n".join([*lines, f"  tensorboard --logdir {shown(plan.folder)}"])


def best_lines(best: list[Row], ranked: list[Row], plan: Plan) -> list[str]:
    """The best, and how far it is from the baseline; of several objectives the front."""
    if len(plan.sweep.objectives) > 1:
        more = [f"  and {len(best) - OF_FRONT} more, in trials.csv"] if len(best) > OF_FRONT else []
        return ["", "the front", *(f"  {described(row, plan)}" for row in best[:OF_FRONT]), *more]
    name, baseline = plan.sweep.objectives[0], next((row for row in ranked if plan.is_baseline(row.place)), None)
    lines = ["", f"best      {described(best[0], plan)}"]
    if baseline:
        lines += [f"baseline  {described(baseline, plan)}"]
    if baseline and baseline is not best[0]:
        lines += [f"          {best[0].values[name] - baseline.values[name]:+.4f} {name} against the baseline"]
    return lines


def described(row: Row, plan: Plan) -> str:
    """One line of a training: its values and settings."""
    values = ", ".join(f"{name} {row.values[name]:.4f}" for name in plan.sweep.objectives if name in row.values)
    point = ", ".join(f"{key}={short(value)}" for key, value in row.point.items()) or "the experiment as it is"
    decode = ", ".join(f"{key}={short(value)}" for key, value in row.outcome.get("decode", {}).get("candidate", {}).items())
    return f"{row.name}  {values}  {point}{f'; decoded best with {decode}' if decode and len(plan.decode) else ''}"


def short(value: Any) -> str:
    """A value in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(plain(value)) if value is not None else "none"


def shown(path: Path) -> str:
    """A path as it is shortest."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
