"""The report of a study, of every shape a study has: what it says, what it draws, what it never does."""

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.errors import OutputError, StudyError
from gpt2_lightning.report import charts, page
from gpt2_lightning.report.command import report_study
from gpt2_lightning.report.record import read_study
from gpt2_lightning.report.study import study_page
from gpt2_lightning.sweep import command
from tests.lab import finish
from tests.report.folders import BETA, CASES, CE, HOSTILE, LR, SPACE, choosy, mixed, study, trial
from tests.sweep.stage import Stage


@pytest.fixture(autouse=True)
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes less to write for each of these pages."""
    monkeypatch.setattr("gpt2_lightning.report.command.drawing_code", lambda: "/* plotly */")


class Html(HTMLParser):
    """Tags with their attributes, and the text of the page outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.inside, self.text = "", ""
        self.data: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if (tag, dict(attrs).get("type")) == ("script", "application/json"):
            self.data.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script" and self.tags[-1][1].get("type"):
            self.data[-1] += data
        elif self.inside not in ("script", "style"):
            self.text += data


def reported(folder: Path) -> tuple[Html, str]:
    """The page and its twin, and what holds of every report."""
    index, twin = report_study(folder)
    html, markdown = Html(index.read_text(encoding="utf-8")), twin.read_text(encoding="utf-8")
    for spec in html.data:
        json.loads(spec, parse_constant=pytest.fail)
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE)
    assert sorted(pictures) == sorted(path.name for path in index.parent.glob("*.png"))
    assert len(pictures) == len(html.data)
    assert all((index.parent / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "could not be drawn" not in markdown
    assert not any(value.startswith(("http:", "https:", "//", "javascript:"))
                   for _, attrs in html.tags for name, value in attrs.items() if name in ("src", "href"))  # fmt: skip
    assert sum(tag == "script" for tag, _ in html.tags) == len(html.data) + (2 if html.data else 1)
    return html, markdown


DRAWN = {  # how many figures each case has
    "none": 0, "none finished": 1, "one": 4, "two": 6, "failures": 1, "pruned": 2, "mixed": 8, "equal": 7, "choices": 8,
    "two objectives": 10, "four objectives": 11, "maximize": 7, "no space": 4, "outside": 7, "broken": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_shape_of_a_study_has_a_whole_report(name: str, tmp_path: Path) -> None:
    html, markdown = reported(CASES[name](tmp_path / "study"))
    assert len(html.data) == DRAWN[name], re.findall("(Nothing.*|No .*)", markdown)
    for title in ("What was asked", "State", "Reproduce the best", "Slots", "Failures", "Budget", "All trials"):
        assert f"\n## {title}\n" in markdown and title in html.text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    _, none = reported(CASES["none"](tmp_path / "none"))
    assert "is not finished, and nobody trains it: of 8 trials, none has begun" in none and "so there is no best" in none
    _, failed = reported(CASES["failures"](tmp_path / "failures"))
    assert "| diverged | 3 | trial-000 | no |" in failed and "There is nothing to reproduce yet." in failed
    _, one = reported(CASES["one"](tmp_path / "one"))
    assert "The best is the baseline" in one and "it takes 4 complete trials, and there are 1" in one


def test_a_trial_that_nobody_holds_is_waiting(tmp_path: Path) -> None:
    _, text = reported(CASES["none finished"](tmp_path / "study"))
    assert "of 8 trials, 2 waiting" in text and "running" not in text


def test_best_baseline_and_runners_up_are_the_ranking_s(tmp_path: Path) -> None:
    values = [3.0, 2.5, 2.0, 2.25]
    diverged = trial(4, "failed", value=None, params=trial(4)["params"])
    diverged["outcome"] |= {"optuna": "COMPLETE", "told": [-5.0]}
    folder = study(tmp_path / "study", [*(trial(i, value=v) for i, v in enumerate(values)), diverged])
    record = read_study(folder)
    assert [row.name for row in record.ranked] == ["trial-002", "trial-003", "trial-001", "trial-000"]
    _, text = reported(folder)
    assert "Best val/cross\\_entropy: 2.0 by trial-002 (-1.0000 against the baseline)." in text
    best, baseline, runner_up = re.findall(r"^\| (trial-\S+) \| (best|baseline|runner-up) \|", text, re.MULTILINE)[:3]
    assert (best, baseline, runner_up) == (("trial-002", "best"), ("trial-000", "baseline"), ("trial-003", "runner-up"))


def test_optuna_s_study_has_no_value_of_a_failed_trial_and_knows_what_is_broken(tmp_path: Path) -> None:
    trials = [trial(0), trial(1, "failed"), trial(2, "pruned"), trial(3)]
    trials[1]["outcome"] |= {"optuna": "COMPLETE", "told": [1e3]}
    trials[3]["outcome"]["broken"] = ["seconds"]
    found = charts.rebuilt(read_study(study(tmp_path / "study", trials))).get_trials()
    assert [t.state.name for t in found] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert found[1].values is None and found[3].constraints == {"seconds": 1.0} and found[0].constraints == {}
    assert found[2].intermediate_values == {int(k): v for k, v in trials[2]["reports"].items()}


def test_the_front_is_named_and_a_command_is_given(tmp_path: Path) -> None:
    _, text = reported(CASES["two objectives"](tmp_path / "study"))
    assert len(re.findall(r"^\| trial-\d+ \| front \|", text, re.MULTILINE)) == 4
    assert "4 trials are on the front of val/cross\\_entropy, seconds." in text
    assert f"train config={tmp_path}/study/configs/trial-000.yaml \"run.study=''\" run.name=study-trial-000 run.id=auto" in text


def test_fresh_seeds_say_how_sure_it_is(tmp_path: Path) -> None:
    def beside(side: str, seed: int, value: float) -> dict[str, Any]:
        return trial(None, value=value, name=f"confirm-{side}-{seed}", beside={"side": side, "seed": seed, "point": {}})

    trials = [trial(0, value=3.0), trial(1, value=2.0)]
    assert "Each value is of one seed" in reported(study(tmp_path / "a", trials))[1]
    trials += [beside(side, i, v + i / 10) for side, v in (("best", 2.1), ("baseline", 2.9)) for i in range(3)]
    text = reported(study(tmp_path / "b", trials, n_trials=2))[1]
    assert "On 3 fresh seeds each: best 2.2000 +- 0.1000, baseline 3.0000 +- 0.1000, p = " in text
    assert "of 2 trials, 2 complete. Beside it, on fresh seeds: 6 complete." in text


def test_what_pruning_saved_and_what_was_spent(tmp_path: Path) -> None:
    text = reported(study(tmp_path / "study", [trial(0), trial(1, "pruned"), trial(2, "pruned")]))[1]
    assert "| saved by ending trials early | 2 trials, 60 of 120 steps saved (50%) |" in text
    assert "| steps trained | 60 |" in text and "| time in slots | 2 min 32 s |" in text


def test_the_curve_over_top_k_is_the_best_trial_s_and_the_others(tmp_path: Path) -> None:
    record = read_study(study(tmp_path / "study", mixed(6)))
    figure = next(f for f in study_page(record, "place").figures() if f.name == "decoding")
    best, others = figure.spec["data"]
    assert best["name"] == f"{record.best[0].name}, the best"
    assert best["x"] == ["1", "8", "all tokens"] and best["y"] == pytest.approx([0.7, 0.0, 4.2], abs=0.1)
    assert others["x"].count("8") == 2 and None in others["y"]
    assert "decoded best at 8" in figure.caption


def test_crosses_stand_where_trials_were_pruned(tmp_path: Path) -> None:
    trials = [trial(0), trial(1, "pruned", steps=10), trial(2, "pruned", steps=25)]
    figure = next(f for f in study_page(read_study(study(tmp_path / "s", trials)), "").figures() if f.name == "curves")
    ends = next(trace for trace in figure.spec["data"] if trace["name"] == "ended early")
    assert ends["x"] == [10, 25]
    assert ends["y"] == [trials[1]["reports"]["10"], trials[2]["reports"]["25"]]


def test_trials_at_the_same_time_are_in_slots_of_their_own(tmp_path: Path) -> None:
    one, two = {"agent": "a.1.2"}, {"started": "2026-01-01T00:00:30", "ended": "2026-01-01T00:02:00"}
    trials = [trial(0, started="2026-01-01T00:00:00", ended="2026-01-01T00:01:00", **one), trial(1, **two, **one),
              trial(2, started="2026-01-01T00:01:10", ended="2026-01-01T00:03:00", **one)]  # fmt: skip
    figure = next(f for f in study_page(read_study(study(tmp_path / "s", trials)), "").figures() if f.name == "timeline")
    assert figure.spec["data"][0]["y"] == ["a 1, slot 0", "a 1, slot 1", "a 1, slot 0"]


def test_beta_by_learning_rate_or_else_what_varies_together(tmp_path: Path) -> None:
    study_of = charts.rebuilt(read_study(study(tmp_path / "a", [trial(i) for i in range(5)])))
    assert charts.pair(study_of, [LR, BETA], 4) == [BETA, LR]
    assert charts.pair(study_of, [LR, BETA], 6) == []
    conditional = charts.rebuilt(read_study(study(tmp_path / "b", [choosy(i) for i in range(12)])))
    order = [f"{LR} (optimizer=sgd)", f"{LR} (optimizer=adam)", "model.attention_window", "model.n_layer"]
    assert charts.pair(conditional, order, 4) == [order[0], order[3]]


def test_nothing_that_is_written_is_more_than_text(tmp_path: Path) -> None:
    space = {HOSTILE: charts.CategoricalDistribution([f"a{HOSTILE}", None, "$b$"]), LR: SPACE[LR]}
    trials = [trial(i, params={HOSTILE: [f"a{HOSTILE}", None, "$b$"][i % 3], LR: 10 ** (-4 + i / 5)}, space=space)
              for i in range(8)]  # fmt: skip
    trials += [trial(8, "failed", why=HOSTILE, reason=HOSTILE, agent=HOSTILE)]
    folder = study(tmp_path / "study", trials, words=[HOSTILE], study=HOSTILE, space={HOSTILE: HOSTILE})
    (folder / read_study(folder).best[0].name / "samples.txt").write_text(f"{HOSTILE}\n```\n</pre>")
    html, markdown = reported(folder)
    shown = page.one_line(HOSTILE)
    assert " ".join(html.text.split()).count(shown) > 10
    assert {tag for tag, _ in html.tags} & {"img", "b", "iframe"} == set()
    assert not any(name.startswith("on") for _, attrs in html.tags for name in attrs)
    assert all("<" not in spec for spec in html.data) and any("&lt;/script>" in str(json.loads(spec)) for spec in html.data)
    assert "\x1b" not in markdown and "\u202e" not in markdown
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<" not in outside and not re.search(r"(?<!\\)\]\((?!\w[\w-]*\.png\))", outside)
    assert re.search(r"^````text\n(?:.*\n)+?```\n</pre>\n````$", markdown, re.MULTILINE)


def test_three_hundred_trials_are_bounded(tmp_path: Path) -> None:
    html, markdown = reported(study(tmp_path / "study", mixed(300)))
    assert len(html.data) == 8 and sum(map(len, html.data)) < 1e6
    assert len(re.findall(r"^\| trial-\d+ \| (?:complete|pruned|failed) \|", markdown, re.MULTILINE)) == 300


def test_of_more_trials_some_are_drawn_and_the_best_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "MOST_TRIALS", 10)
    values = [3.0 + i for i in range(25)]
    values[13] = 1.0
    record = read_study(study(tmp_path / "study", [trial(i, value=v) for i, v in enumerate(values)]))
    found = [t.value for t in charts.rebuilt(record).get_trials()]
    assert 10 <= len(found) <= 11 and found[0] == 3.0 and 27.0 in found and 1.0 in found
    assert any("10 of the 25 trials" in str(block) for s in study_page(record, "").sections for block in s.blocks)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"trials": [{}]}', '{"trials": 3}', '{"trials": [], "objectives": []}'])
def test_a_record_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(StudyError, match=r"study \(study = .*\): has (no|a) study.json that"):
        read_study(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", [trial(0)])
    (folder / "report").write_text("a file")
    with pytest.raises(OutputError, match=r"report \(out = .*\): cannot be written"):
        report_study(folder)


def test_the_report_loads_no_torch() -> None:
    code = "import sys; import gpt2_lightning.report.command; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_study_s_end_writes_the_report_and_names_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "sweep.report=true", "sweep.n_trials=3")
    assert stage.run() == 0, stage.said()
    assert stage.said().splitlines()[-1] == "  report  outputs/sweeps/study/report/index.html"
    text = (stage.study / "report/report.md").read_text()
    assert "of 3 trials, 3 complete" in text and "train best=study" in text
    assert CE in json.loads((stage.study / "study.json").read_text())["objectives"]


def test_an_interrupted_study_has_its_report(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "sweep.report=true", "sweep.n_trials=3", fake={"ms": 30})
    agent = stage.start()
    stage.wait_for(
        lambda: any(row["state"] == "complete" for row in stage.table()) if (stage.study / "trials.csv").exists() else 0
    )
    os.kill(agent, signal.SIGINT)
    assert finish(agent, 60) == 130
    text = (stage.study / "report/report.md").read_text()
    assert "The study is not finished, and nobody trains it: of 3 trials, 1 complete, 1 waiting" in text


def test_a_report_that_fails_costs_a_line_and_no_study(tmp_path: Path) -> None:
    def broken() -> None:
        def fails(*_: Any) -> None:
            raise RuntimeError("no <b>ink</b>\nat all")

        command.write_record = fails  # type: ignore[assignment]

    stage = Stage(tmp_path, "journal", "sweep.report=true", "sweep.n_trials=2")
    assert stage.run(broken=broken) == 0
    assert stage.said().splitlines()[-1] == "warning: the report is not written: no <b>ink</b>"
