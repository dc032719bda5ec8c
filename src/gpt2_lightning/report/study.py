"""What a study's report says: its record and its trials' folders in; a page out.

One number: 4 complete trials are the fewest that importance and contour are drawn of; before, the page says what is missing.
Choice not taken: hiding a section that has nothing to show, which a reader would look for.
"""

import json
import shlex
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2_lightning.report import charts
from gpt2_lightning.report.charts import COLOURS, Series, Span, Study
from gpt2_lightning.report.page import Block, Page, Section, Table, Verbatim, duration, number, plain
from gpt2_lightning.report.ranking import Row, confirmed, failures, saved
from gpt2_lightning.report.record import RECORD, StudyRecord

__all__ = ["study_page"]

FEWEST = 4
RUNNERS_UP, OF_FRONT, MOST_SLICES = 5, 20, 6
Line = tuple[list[Any], list[Any], str]  # a trial's points, and its name
SAYING = {"running": "is running", "finished": "is finished", "unfinished": "is not finished, and nobody trains it"}


def study_page(record: StudyRecord, place: str) -> Page:
    """The page of a study whose folder is called ``place`` where its commands are typed."""
    failed = [[why, n, row.name, reason] for why, n, row, reason in failures(record.rows)]
    sections = [
        Section("What was asked", asked_blocks(record)),
        Section("State", state_blocks(record)),
        Section("Best against baseline", best_blocks(record)),
        Section("Reproduce the best", reproduce_blocks(record, place)),
        *plots(record),
        Section("Decoding", decode_blocks(record)),
        Section("Curves of the trials", curve_blocks(record)),
        Section("Slots", slot_blocks(record)),
        Section("Failures", [Table(["class", "trials", "such as", "its reason"], failed) if failed else "No trial failed."]),
        Section("Budget", budget_blocks(record)),
        Section("All trials", trial_blocks(record)),
    ]
    return Page(f"Study {record.asked['study']}", lead(record), sections)


def lead(record: StudyRecord) -> str:
    """The report in a sentence."""
    if not record.best:
        return f"No trial is complete: {counted(record.own)}."
    if len(record.objectives) > 1:
        return f"{len(record.best)} trials are on the front of {', '.join(record.objectives)}."
    name, best, baseline = record.objectives[0], record.best[0], record.baseline
    against = f" ({best.values[name] - baseline.values[name]:+.4f} against the baseline)" if baseline else ""
    return f"Best {name}: {number(best.values[name])} by {best.name}{against}."


def asked_blocks(record: StudyRecord) -> list[Block]:
    """What the study was begun with."""
    a = record.asked
    aims = [f"{direction} {name}" for name, direction in zip(a["objectives"], a["directions"], strict=True)]
    rows = [
        ["objective" if len(aims) == 1 else "objectives", "; ".join(aims)],
        ["trials", f"{a['n_trials']}, at most {a['max_steps']:,} steps each"],
        ["sampler, pruner", f"{a['sampler']}, {a['pruner']}"],
        ["baseline", "the experiment as it is, as trial-000" if a["baseline"] else "none"],
        *([["decode-time settings", f"{a['decode_direction']} {a['decode_objective']}"]] if a["decode"] else []),
        *([["constraint", f"{key} at most {plain(most)}"] for key, most in a["constraints"].items()]),
    ]
    space = [[key, text, "training"] for key, text in a["space"].items()]
    space += [[key, text, "decoding, on each trained model"] for key, text in a["decode"].items()]
    words = " ".join(shlex.quote(word) for word in sorted(a["words"], key=lambda word: not word.startswith("+")))
    blocks: list[Block] = [Verbatim(f"python -m gpt2_lightning {words}"), Table(["", "asked"], rows)]
    return [*blocks, Table(["searched", "values", "for"], space) if space else "Nothing is searched."]


def state_blocks(record: StudyRecord) -> list[Block]:
    """How far it is."""
    beside = [row for row in record.rows if row.place is None]
    more = f" Beside it, on fresh seeds: {counted(beside)}." if beside else ""
    said = SAYING[record.state]
    blocks: list[Block] = [f"The study {said}: of {record.asked['n_trials']} trials, {counted(record.own)}.{more}"]
    if record.state == "unfinished":
        blocks.append("The command above goes on with it.")
    if len(record.own) > charts.MOST_TRIALS:
        of = f"{charts.MOST_TRIALS} of the {len(record.own)} trials"
        blocks.append(f"Optuna's plots below are of {of}, evenly chosen, and the best.")
    return blocks


def counted(rows: list[Row]) -> str:
    """How many are in which state."""
    found = Counter(row.state for row in rows)
    return ", ".join(f"{n} {state}" for state, n in sorted(found.items())) or "none has begun"


def best_blocks(record: StudyRecord) -> list[Block]:
    """The best, the baseline, the runners-up, and how sure the difference is."""
    if not record.best:
        return ["No trial is complete, so there is no best."]
    several = len(record.objectives) > 1
    shown = [("front", row) for row in record.best[:OF_FRONT]] if several else [("best", record.best[0])]
    if record.baseline and record.baseline not in record.best:
        shown.append(("baseline", record.baseline))
    others = [row for row in record.ranked if row not in record.best and row is not record.baseline]
    shown += [("runner-up", row) for row in others[:RUNNERS_UP]]
    rows = [[row.name, what, *(row.values.get(name) for name in record.objectives),
             ", ".join(f"{key} = {short(value)}" for key, value in row.settings.items()) or "the experiment as it is"]
            for what, row in shown]  # fmt: skip
    blocks: list[Block] = [Table(["trial", "", *record.objectives, "settings"], rows)]
    if len(record.best) > OF_FRONT:
        blocks.append(f"{len(record.best) - OF_FRONT} more trials are on the front; all are in the last table.")
    return blocks + ([] if several else [confidence(record)]) + samples(record)


def short(value: Any) -> str:
    """A setting's value."""
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else plain(value)


def confidence(record: StudyRecord) -> str:
    """How sure the difference between the best and the baseline is."""
    found = confirmed(record.rows, record.objectives[0])
    if found:
        return f"On {found[0]} fresh seeds each: {found[1]}."
    if not record.baseline:
        return "The baseline is not complete, so there is nothing to compare the best with."
    if record.baseline in record.best:
        return "The best is the baseline: nothing that was tried is better than the experiment as it is."
    luck = "Each value is of one seed, and the best of many trials is partly luck"
    return f"{luck}: sweep.confirm_seeds=3 trains both on fresh seeds."


def samples(record: StudyRecord) -> list[Block]:
    """What the best has written."""
    with suppress(OSError):
        text = (record.folder / record.best[0].name / "samples.txt").read_text(encoding="utf-8", errors="replace")
        return [f"What {record.best[0].name} writes:", Verbatim(text[:2000])]
    return []


def reproduce_blocks(record: StudyRecord, place: str) -> list[Block]:
    """The command that trains the best again."""
    if not record.best:
        return ["There is nothing to reproduce yet."]
    name, best = record.asked["study"], record.best[0].name
    if len(record.objectives) == 1 and (record.folder / "best.yaml").is_file():
        given = name if place == f"outputs/sweeps/{name}" else place
        return [Verbatim(f"python -m gpt2_lightning train {shlex.quote(f'best={given}')}")]
    config = shlex.quote(f"config={place}/configs/{best}.yaml")
    command = f"python -m gpt2_lightning train {config} \"run.study=''\" {shlex.quote(f'run.name={name}-{best}')} run.id=auto"
    first = ["The first of the front; the others are to be had in the same way."] if len(record.best) > 1 else []
    return [*first, Verbatim(command)]


def plots(record: StudyRecord) -> list[Section]:
    """What Optuna draws: values over trials, which settings matter, and values over all settings, over each and over two."""
    study, first, aim = charts.rebuilt(record), record.objectives[0], charts.target(record)
    tried = [t.params for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and t.params]
    few: list[Block] = ["Nothing to draw: it takes two complete trials."] if len(tried) < 2 else []
    importance, order = importance_blocks(record, study, len(tried))
    lines = "Each line is a complete trial, through its value and its settings; the darker, the better."
    params = [name for name in order if any(name in params for params in tried)][:MOST_SLICES]
    over = f"{first} of the complete trials over one parameter each; the darker the point, the later the trial."
    over += f" The {MOST_SLICES} most important are shown." if len(order) > MOST_SLICES else ""
    pair = charts.pair(study, order, FEWEST)  # beta by learning rate, or the two most important numbers
    between = f"{first} between the complete trials, the points: an interpolation, and a guess far from them."
    none = f"Nothing to draw: it takes two numbers that vary together in {FEWEST} complete trials."
    return [
        Section("Optimization history", history_blocks(record, study)),
        Section("Importance", importance),
        *([Section("Pareto front", [front(record, study)])] if len(record.objectives) > 1 else []),
        Section("Parallel coordinates", few or [drawn(study, "parallel", "parallel_coordinate", lines, **aim)]),
        Section("Slices", few or [drawn(study, "slices", "slice", over, params=params, **aim)]),
        Section("Contour", [drawn(study, "contour", "contour", between, params=pair, **aim) if pair else none]),
    ]


def drawn(study: Study, name: str, what: str, caption: str, **options: Any) -> Block:
    """What Optuna draws of the study, or the reason why it cannot."""
    try:
        return charts.of_optuna(name, caption, what, study, **options)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        return f"This could not be drawn: {type(error).__name__}: {error}"


def history_blocks(record: StudyRecord, study: Study) -> list[Block]:
    """A plot for each objective."""
    if not record.ranked:
        return ["Nothing to draw: no trial is complete."]
    so_far, blocks = "" if len(record.objectives) > 1 else ", and the line is the best so far", list[Block]()
    for i, direction in enumerate(record.asked["directions"]):
        caption = f"Each point is a complete trial{so_far}. {'Lower' if direction == 'minimize' else 'Higher'} is better."
        name = f"history-{i + 1}" if i else "history"
        blocks.append(drawn(study, name, "optimization_history", caption, **charts.target(record, i)))
    return blocks


def importance_blocks(record: StudyRecord, study: Study, complete: int) -> tuple[list[Block], list[str]]:
    """The plot, and the parameters in order of importance, as far as it is known."""
    names = list(dict.fromkeys(name for row in record.rows for name in row.told["params"]))
    if len(names) < 2:
        return [f"Nothing to compare: {names[0] + ' is all that' if names else 'nothing'} is searched."], names
    if complete < FEWEST:
        return [f"Nothing to draw: it takes {FEWEST} complete trials, and there are {complete}."], names
    found, options = charts.importances(record, study)
    if not sum(found.values()):
        return ["Nothing to draw: no parameter tells the best trials from the others."], names
    caption = "The longer the bar, the more this parameter tells the best tenth of the complete trials from the others "
    caption += "(Optuna's PedAnovaImportanceEvaluator). Of few trials it is a hint."
    order = [*found, *(name for name in names if name not in found)]
    return [charts.of_optuna("importance", caption, "param_importances", study, **options)], order


def front(record: StudyRecord, study: Study) -> Block:
    """The front of two or three objectives."""
    if len(record.objectives) > 3:
        return f"A front of {len(record.objectives)} objectives cannot be drawn; its trials are in the tables."
    if not record.best:
        return "Nothing to draw: no trial is complete."
    caption = "Each point is a complete trial; of those on the front, no other is better in every objective."
    return drawn(study, "front", "pareto_front", caption, target_names=record.objectives)


def decode_blocks(record: StudyRecord) -> list[Block]:
    """The decode objective over top-k, of each trained model."""
    keys = list(record.asked["decode"])
    if not keys:
        return ["No decode-time setting is searched apart."]
    key = "sampler.k" if "sampler.k" in keys else keys[0]
    by, sign = record.asked["decode_objective"], -1 if record.asked["decode_direction"] == "maximize" else 1
    found = {row.name: scores_over(record.folder / row.name, key, by, sign) for row in record.own if row.state == "complete"}
    found = {name: scores for name, scores in found.items() if scores}
    if not found:
        return ["Nothing to draw: no trained model has been scored."]
    best = next((row.name for row in record.ranked if row.name in found), next(iter(found)))
    lines = {name: ([*scores], [*scores.values()], name) for name, scores in found.items()}
    series = [Series(f"{best}, the best", COLOURS["best"], *joined([lines.pop(best)]), width=3)]
    if lines:
        series.append(Series("other trials", COLOURS["complete"], *joined([*lines.values()]), width=1, opacity=0.45))
    beside = f" (at the best of the other decode-time settings: {', '.join(k for k in keys if k != key)})" if keys[1:] else ""
    lowest = (min if sign == 1 else max)(found[best], key=lambda x: found[best][x])
    better = "lower" if sign == 1 else "higher"
    caption = f"{by} over {key}{beside}, {better} is better; {best} is decoded best at {lowest}."
    return [charts.curves("decoding", caption, key, by, series)]


def scores_over(folder: Path, key: str, by: str, sign: int) -> dict[str, float]:
    """The best measure at each value of a decode-time key."""
    found: dict[str, float] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for score in json.loads((folder / "scores.json").read_text(encoding="utf-8")):
            value, x = score["measures"].get(by), score["candidate"][key]
            label = "all tokens" if x is None and key == "sampler.k" else short(x)
            if value is not None:
                found[label] = value if label not in found else sign * min(sign * value, sign * found[label])
    return found


def joined(lines: list[Line]) -> tuple[list[Any], list[Any], list[str]]:
    """Lines as one, with gaps between: as quick to draw as a single line."""
    xs, ys, names = [], [], []
    for x, y, name in lines:
        xs += [*x, x[-1]]
        ys += [*y, None]
        names += [name] * (len(x) + 1)
    return xs[:-1], ys[:-1], names[:-1]


def curve_blocks(record: StudyRecord) -> list[Block]:
    """The validations of each trial on its way, and where it was ended."""
    reported = [row for row in record.own if row.told["reports"]]
    if not reported:
        return ["Nothing to draw: no trial has reported a validation of the first objective."]
    found: dict[str, list[Line]] = {state: [] for state in ("running", "waiting", "failed", "pruned", "complete", "best")}
    for row in charts.thinned(reported, charts.MOST_TRIALS):
        points = sorted((int(step), value) for step, value in row.told["reports"].items())
        xs, ys = zip(*charts.thinned(points, charts.MOST_POINTS), strict=True)
        found["best" if row in record.best[:1] else row.state].append(([*xs], [*ys], row.name))
    series = []
    for state, lines in ((state, lines) for state, lines in found.items() if lines):
        label, width, opacity = (f"{lines[0][2]}, the best", 3, 1) if state == "best" else (state, 1.2, 0.6)
        series.append(Series(label, COLOURS[state], *joined(lines), width=width, opacity=opacity))
        if state == "pruned":
            ends, heights = [xs[-1] for xs, _, _ in lines], [ys[-1] for _, ys, _ in lines]
            series.append(Series("ended early", COLOURS[state], ends, heights, [name for _, _, name in lines], marks="x"))
    caption = f"{record.objectives[0]} at each validation; a cross marks where the pruner ended a trial."
    return [charts.curves("curves", caption, "step", record.objectives[0], series)]


def slot_blocks(record: StudyRecord) -> list[Block]:
    """When which trial was trained."""
    now = datetime.fromtimestamp((record.folder / RECORD).stat().st_mtime)
    spans: list[Span] = []
    free: dict[tuple[str, int], datetime] = {}
    agents: dict[str, str] = {}
    timed = [(datetime.fromisoformat(row.told["started"]), row) for row in record.rows if row.told["started"]]
    for begun, row in sorted(timed, key=lambda one: one[0]):
        ended = datetime.fromisoformat(row.told["ended"]) if row.told["ended"] else max(begun, now)
        host = str(row.told["agent"] or "?").split(".")[0]
        agent = agents.setdefault(str(row.told["agent"]), f"{host} {len(agents) + 1}")
        slot = next((i for i in range(len(timed)) if free.get((agent, i), begun) <= begun), 0)
        free[agent, slot] = ended
        spans.append(Span(f"{agent}, slot {slot}", begun, ended, row.state, row.name))
    if not spans:
        return ["Nothing to draw: no trial has begun."]
    return [charts.timeline("Each bar is a trial in its slot; white between them is time in which the slot was idle.", spans)]


def budget_blocks(record: StudyRecord) -> list[Block]:
    """What the study has taken, and what ending trials early has saved."""
    times = [datetime.fromisoformat(row.told[key]) for row in record.rows for key in ("started", "ended") if row.told[key]]
    seconds = sum(row.outcome.get("seconds", 0) for row in record.rows)
    rows = [["steps trained", f"{sum(row.steps for row in record.rows):,}"], ["time in slots", duration(seconds)]]
    if times:
        rows.append(["from the first start to the last end", duration((max(times) - min(times)).total_seconds())])
    rows.append(["saved by ending trials early", saved(record.own) or "nothing"])
    return [Table(["", "spent"], rows)]


def trial_blocks(record: StudyRecord) -> list[Block]:
    """Everything, a row a trial."""
    if not record.rows:
        return ["No trial has begun."]
    keys = [*dict.fromkeys(key for row in record.rows for key in row.point), *record.asked["decode"]]
    heads = ["trial", "state", *record.objectives, *keys, "steps", "seconds", "starts", "why"]
    rows = []
    for row in record.rows:
        found = {key: "none" if value is None else value for key, value in row.settings.items()}  # unlike one that is not there
        rows.append([row.name, row.state, *map(row.values.get, record.objectives), *map(found.get, keys), row.steps,
                     row.outcome.get("seconds"), row.told["attempts"], reason(row)])  # fmt: skip
    return ["A click on a column's head sorts by it.", Table(heads, rows)]


def reason(row: Row) -> str:
    """Why a trial is not what it might be."""
    broken = f"breaks {', '.join(row.outcome['broken'])}" if row.outcome.get("broken") else ""
    return ": ".join(part for part in (row.why, row.outcome.get("reason", "") or broken) if part)
