"""What comes out of a study: which is best and which never is, the tables, the words, and what a terminal shows meanwhile."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from gpt2_lightning.config import load_config, to_yaml
from gpt2_lightning.report.page import duration
from gpt2_lightning.report.ranking import Row, p_value
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.sweep import summary as room
from gpt2_lightning.sweep import view as view_room
from gpt2_lightning.sweep.ledger import Claim
from gpt2_lightning.sweep.plan import Plan, read_plan
from gpt2_lightning.sweep.pool import Slot
from gpt2_lightning.sweep.summary import front, rank, summary, write_tables
from gpt2_lightning.sweep.view import View
from gpt2_lightning.sweep.work import Work

CE = "val/cross_entropy"


def row(place: int | None, value: Any = None, state: str = "complete", why: str = "", **more: Any) -> Row:
    values = value if isinstance(value, dict) else {} if value is None else {CE: float(value)}
    outcome = {"state": state, "class": why, "values": values, **more.pop("outcome", {})}
    name = more.pop("name", f"trial-{place or 0:03d}")
    point = more.pop("point", {"loss.beta": 0.1 * (place or 0)})
    return Row(name=name, place=place, state=state, why=why, values=values, point=point, outcome=outcome,
               beside=more.pop("beside", {}), steps=more.pop("steps", 188))  # fmt: skip


@pytest.fixture(scope="module")
def composed() -> Plan:
    return read_plan(["+experiment=quickstart", "+sweeps=beta_lr_topk"])


@pytest.fixture
def plan(composed: Plan, here: Path) -> Plan:
    """A study in an empty folder, with the settings of a few trials."""
    run = replace(composed.base.run, folder=str(here / "outputs"))
    plan = replace(composed, base=replace(composed.base, run=run))
    (plan.folder / "configs").mkdir(parents=True)
    for place in range(4):
        config = plan.variants.at({"loss.beta": 0.1 * place} | plan.of_trial(f"trial-{place:03d}", 2))
        (plan.folder / "configs" / f"trial-{place:03d}.yaml").write_text(to_yaml(config))
    return plan


def several(plan: Plan, directions: list[str]) -> Plan:
    return replace(plan, sweep=replace(plan.sweep, objective=[CE, "seconds"], direction=directions))


def table(plan: Plan, name: str = "trials.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((plan.folder / name).read_text(encoding="utf-8"))))


def test_the_best_is_complete_the_study_s_own_and_within_the_constraints(composed: Plan) -> None:
    rows = [
        row(0, 3.0), row(1, 2.0, outcome={"broken": ["seconds"]}), row(2, 1.0, state="pruned"),
        row(3, 1e9, "failed", "diverged"),
        row(4, 0.5, state="running"), row(None, 0.1, name="confirm-best-1"), row(5, 2.5), row(6, 2.5), row(7),
    ]  # fmt: skip
    assert [r.place for r in rank(rows, composed)] == [5, 6, 0]
    upwards = replace(composed, sweep=replace(composed.sweep, direction="maximize"))
    assert [r.place for r in rank(rows, upwards)] == [0, 5, 6]
    assert rank([], composed) == []


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(points, st.sampled_from(["minimize", "maximize"]), st.sampled_from(["minimize", "maximize"]))
@settings(deadline=None, max_examples=60)
def test_the_front_is_what_nothing_is_better_than(composed: Plan, values: list[tuple[int, int]], one: str, two: str) -> None:
    plan = several(composed, [one, two])
    rows = [row(i, {CE: float(a), "seconds": float(b)}) for i, (a, b) in enumerate(values)]
    signs = [1 if direction == "minimize" else -1 for direction in (one, two)]
    costs = [(signs[0] * a, signs[1] * b) for a, b in values]
    expected = {i for i, c in enumerate(costs) if not any(d != c and d[0] <= c[0] and d[1] <= c[1] for d in costs)}
    assert {r.place for r in front(rows, plan)} == expected


def test_the_front_leaves_out_what_lacks_a_value_or_breaks_a_constraint(composed: Plan) -> None:
    plan = several(composed, ["minimize", "minimize"])
    rows = [
        row(0, {CE: 1.0}),
        row(1, {CE: 1.0, "seconds": 1.0}, outcome={"broken": ["seconds"]}),
        row(2, {CE: 2.0, "seconds": 2.0}),
    ]
    assert [r.place for r in front(rows, plan)] == [2]


HOSTILE = 'it\'s "so", =1+1; a\nb\\ é\x1b[2J'


def test_trials_csv_has_a_row_a_trial_and_keeps_every_text(plan: Plan) -> None:
    rows = [
        row(0, 3.0, outcome={"seconds": 9.5, "folder": "f", "decode": {"candidate": {"sampler.k": None}}}),
        row(1, None, "failed", "error", outcome={"reason": HOSTILE}, point={"data.path": HOSTILE, "optimizer.betas": [0.5, 0.6]}),  # noqa: E501
        row(2, 2.0, point={}), row(3, None, "running", steps=47),
    ]  # fmt: skip
    write_tables(rows, plan)
    written = table(plan)
    assert [(t["trial"], t["state"], t["best"], t[CE]) for t in written] == [
        ("trial-000", "complete", "0", "3.0"), ("trial-001", "failed", "0", ""), ("trial-002", "complete", "1", "2.0"),
        ("trial-003", "running", "0", ""),
    ]  # fmt: skip
    assert (written[1]["reason"], written[1]["class"], written[1]["data.path"]) == (HOSTILE, "error", HOSTILE)
    assert written[1]["optimizer.betas"] == "[0.5, 0.6]" and written[0]["decode"] == '{"sampler.k": null}'
    assert (written[0]["seconds"], written[0]["folder"], written[3]["steps"]) == ("9.5", "f", "47")
    assert not (plan.folder / "decode.csv").exists()


def test_decode_csv_has_every_candidate_of_every_complete_trial(plan: Plan) -> None:
    scores = (
        '[{"candidate": {"sampler.k": 1}, "measures": {"a": 1.5}}, {"candidate": {"sampler.k": null}, "measures": {"b": 2}}]'
    )
    for name, text in {"trial-000": scores, "trial-001": scores, "trial-002": "[{"}.items():
        (plan.folder / name).mkdir()
        (plan.folder / name / "scores.json").write_text(text)
    write_tables([row(0, 1.0), row(1, 1.0, "failed"), row(2, 1.0), row(3, 1.0)], plan)
    assert table(plan, "decode.csv") == [
        {"trial": "trial-000", "sampler.k": "1", "a": "1.5", "b": ""},
        {"trial": "trial-000", "sampler.k": "", "a": "", "b": "2"}
    ]  # fmt: skip


def test_best_yaml_is_the_best_run_s_settings_as_a_run_of_its_own(plan: Plan) -> None:
    sampler = {"candidate": {"sampler.k": None}, "sampler": {"k": None, "temperature": 0.5}}
    write_tables([row(0, 3.0), row(2, 2.0, outcome={"decode": sampler})], plan)
    text = (plan.folder / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith(
        "# beta_lr_topk, trial-002: val/cross_entropy = 2.0\n# python -m gpt2_lightning train best=beta_lr_topk\n"
    )
    best = load_config(str(plan.folder / "best.yaml"), [])
    assert best.loss.beta == 0.2 and best.sampler == SamplerConfig(k=None, temperature=0.5)
    assert (best.run.study, best.run.name, best.run.id) == ("", "beta_lr_topk-best", "auto")


def test_there_is_no_best_yaml_without_a_best_or_of_several_objectives(plan: Plan) -> None:
    write_tables([row(0, None, "failed", "diverged"), row(1, 2.0, "pruned")], plan)
    many = several(plan, ["minimize", "minimize"])
    write_tables(
        [row(0, {CE: 1.0, "seconds": 2.0}), row(1, {CE: 2.0, "seconds": 1.0}), row(2, {CE: 2.0, "seconds": 2.0})], many
    )
    assert not (plan.folder / "best.yaml").exists()
    assert [t["best"] for t in table(plan)] == ["1", "1", "0"]


def test_the_summary_of_nothing_and_of_failures_alone(plan: Plan) -> None:
    text = summary([], plan)
    assert text.startswith("study beta_lr_topk: 0 of 8 trials\nno trial is complete\n")
    assert "best=" not in text and "best.yaml" not in text
    failed = [
        row(i, None, "failed", why, outcome={"reason": HOSTILE}) for i, why in enumerate(["error", "diverged", "diverged"])
    ]
    text = summary(failed, plan)
    assert "3 failed of 8 trials" in text
    assert 'failed    2 diverged, such as trial-001: it\'s "so", =1+1; a b\\ é' in text
    assert text.index("2 diverged") < text.index("1 error")


def test_the_summary_has_best_baseline_runner_ups_and_what_was_saved(plan: Plan) -> None:
    rows = [row(i, 3.0 - 0.1 * i, outcome={"decode": {"candidate": {"sampler.k": 8}}}) for i in range(8)]
    rows += [row(8, 5.0, "pruned", steps=47), row(9, None, "running")]
    lines = summary(rows, plan).splitlines()
    assert lines[0] == "study beta_lr_topk: 8 complete, 1 pruned, 1 running of 8 trials"
    assert lines[2] == "best      trial-007  val/cross_entropy 2.3000  loss.beta=0.7; decoded best with sampler.k=8"
    assert lines[3].startswith("baseline  trial-000  val/cross_entropy 3.0000")
    assert lines[4].strip() == "-0.7000 val/cross_entropy against the baseline"
    at = lines.index("runner-ups")
    assert [line.split()[0] for line in lines[at + 1 : at + 6]] == [f"trial-{i:03d}" for i in (6, 5, 4, 3, 2)]
    assert lines[at + 6] == "pruned    1 trials, 141 of 1,692 steps saved (8%)"
    assert lines[-2:] == [
        "  python -m gpt2_lightning train best=beta_lr_topk",
        "  tensorboard --logdir outputs/sweeps/beta_lr_topk",
    ]


def test_a_baseline_that_is_the_best_has_no_difference(plan: Plan) -> None:
    text = summary([row(0, 1.0, point={})], plan)
    assert "best      trial-000  val/cross_entropy 1.0000  the experiment as it is" in text
    assert "against" not in text and "runner-ups" not in text


def test_of_several_objectives_the_front_is_named_and_the_others_apart(plan: Plan) -> None:
    many = several(plan, ["minimize", "minimize"])
    lines = summary(
        [row(i, {CE: float(a), "seconds": float(b)}) for i, (a, b) in enumerate([(1, 3), (2, 2), (3, 3)])], many
    ).splitlines()
    front_at, others_at = lines.index("the front"), lines.index("runner-ups")
    assert [line.split()[0] for line in lines[front_at + 1 : others_at]] == ["trial-000", "trial-001"]
    assert lines[others_at + 1].split()[0] == "trial-002"
    assert "best=" not in "\n".join(lines)


def beside(side: str, seed: int, value: float) -> Row:
    return row(None, value, name=f"confirm-{side}-{seed}", beside={"side": side, "seed": seed, "point": {}})


def test_fresh_seeds_give_means_deviations_and_the_p_value(plan: Plan) -> None:
    best, baseline = [2.0, 2.1, 2.2], [2.3, 2.25, 2.5]
    rows = [
        row(0, 1.0),
        *(beside(side, seed, v) for side, values in (("best", best), ("baseline", baseline)) for seed, v in enumerate(values)),
    ]
    expected = (
        f"3 fresh seeds  best 2.1000 +- 0.1000, baseline 2.3500 +- 0.1323, p = {ttest_rel(best, baseline).pvalue:.3g} (paired"
    )
    assert expected in summary(rows, plan)
    assert "fresh seeds" not in summary([row(0, 1.0), beside("best", 1, 2.0), beside("baseline", 2, 2.0)], plan)


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6)


@given(pairs)
@settings(deadline=None, max_examples=60)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_p_value_is_scipy_s(values: list[tuple[int, int]]) -> None:
    a, b = ([float(pair[i]) for pair in values] for i in (0, 1))
    ours, theirs = p_value(a, b), float(ttest_rel(a, b).pvalue)
    assert ours == pytest.approx(theirs) or (math.isnan(ours) and math.isnan(theirs))


def test_three_hundred_trials_are_still_a_short_summary(plan: Plan) -> None:
    rows = [row(i, 5.0 - 0.01 * (i % 100), "pruned" if i % 3 else "complete") for i in range(300)]
    (plan.folder / "configs" / "trial-099.yaml").write_text((plan.folder / "configs" / "trial-001.yaml").read_text())
    write_tables(rows, plan)
    assert len(table(plan)) == 300
    assert len(summary(rows, plan).splitlines()) < 20
    many = several(plan, ["minimize", "maximize"])
    lines = summary([row(i, {CE: float(i), "seconds": float(i)}) for i in range(300)], many).splitlines()
    assert len(lines) < 20 and "  and 290 more, in trials.csv" in lines


class Stream(io.TextIOWrapper):
    """A stream that is, or is not, a terminal."""

    mode = "w"

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.terminal = terminal

    @property
    def name(self) -> str:
        return "stream"

    def getvalue(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()

    def isatty(self) -> bool:
        return self.terminal


LINE = "trial-001  training  step 47/188  2.5000  1 min 15 s left  loss.beta=0.1"


def drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool, seconds: float, slots: list[str]) -> tuple[View, Stream]:
    now = [0.0]
    monkeypatch.setattr(view_room.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "60")
    stream = Stream(terminal)
    view = View(stream)
    for _ in range(3):
        now[0] += seconds
        if view.due():
            view.show("study: 1/8 done", slots)
    return view, stream


def test_in_a_pipe_lines_are_plain_whole_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    view, stream = drawn(monkeypatch, False, 21.0, [LINE])
    assert stream.getvalue() == f"study: 1/8 done\n  {LINE}\n"
    view.note("trial-001 complete")
    assert stream.getvalue().endswith("trial-001 complete\n") and "\x1b" not in stream.getvalue()


def test_a_slots_line_has_its_trials_state_value_and_time_left(
    composed: Plan, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setattr(view_room.time, "monotonic", lambda: 100.0)
    claim = Claim(optuna.create_study().ask(), "trial-001", 1, {})
    work = Work(claim, Slot(0, (), 1), composed.base, {"loss.beta": 0.1}, here)
    assert str(work) == "trial-001  training  step 0/188  -  loss.beta=0.1"
    work.step, work.value, work.first = 47, 2.5, (75.0, 0)
    assert str(work) == LINE
    work.step, work.first = 188, None
    assert str(work) == "trial-001  finishing  step 188/188  2.5000  loss.beta=0.1"
    (here / "configs").mkdir()
    work.asked_file.touch()
    assert str(work).startswith("trial-001  scoring  step 188/188")
    work.stopping = "pruned"
    assert str(work).startswith("trial-001  ending (pruned)  step 188/188")


def test_on_a_terminal_the_block_is_rewritten_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"trial-002  training  step 47/188  -  {'x' * 200}"
    view, stream = drawn(monkeypatch, True, 1.0, [LINE, long])
    parts = stream.getvalue().split("\x1b[3A\x1b[J")
    assert len(parts) == 3 and parts[0] == parts[2]
    assert all(len(line) < 60 for line in parts[0].splitlines())
    assert parts[0].splitlines()[-1] == "study: 1/8 done"
    view.note("it failed")
    assert stream.getvalue().endswith("\x1b[3A\x1b[Jit failed\n")
    view.note("again")
    assert stream.getvalue().endswith("it failed\nagain\n"), "nothing above is taken away"


def test_on_a_terminal_more_slots_than_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "10")
    _, stream = drawn(monkeypatch, True, 1.0, [LINE] * 1000)
    lines = stream.getvalue().split("\x1b[9A\x1b[J")[-1].splitlines()
    assert len(lines) == 9 and lines[-2:] == ["  ... and 993 more", "study: 1/8 done"]


def test_what_a_trial_says_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    view, stream = drawn(monkeypatch, True, 1.0, [f"trial-001  {HOSTILE}"])
    view.note(HOSTILE)
    assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith('it\'s "so", =1+1; a b\\ é', len("\x1b[2A\x1b[J"))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3661, "1 h 01 min")])
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(float(seconds)) == text


def test_numbers_are_short_and_none_is_said() -> None:
    assert [room.short(value) for value in (0.0123456, 3, None, [1, None], True, "a")] == [
        "0.01235",
        "3",
        "none",
        "[1, null]",
        "True",
        "a",
    ]
