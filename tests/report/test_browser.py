"""The report in a browser: from file://, without a network, every figure drawn, nothing on the console."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpt2_lightning.report.command import report_runs, report_study
from tests.report.folders import HOSTILE, LR, SPACE, mixed, run, study, trial

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
ASKED = """<script>setTimeout(() => {
  const asked = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  const drawn = [...document.querySelectorAll(".plot")].filter((plot) => plot.querySelector(".main-svg .cartesianlayer path"));
  document.querySelectorAll("th")[ASKED_HEAD].click();
  const column = [...document.querySelectorAll("table")].at(-1).rows;
  document.body.innerHTML = `<p id="seen">${drawn.length} drawn, ${asked.length} asked for</p>` +
    `<p id="order"></p>`;
  document.getElementById("order").textContent = [...column].slice(1).map((row) => row.cells[2].textContent).join(" ");
}, 3000)</script></body>"""


def opened(page: Path, more: str = "", head: int = 0) -> tuple[str, list[str]]:
    """What the page has come to, and what it said on the console."""
    text = page.read_text(encoding="utf-8")
    watched = page.with_name("watched.html")
    watched.write_text(text.replace("</body>", more + ASKED.replace("ASKED_HEAD", str(head))), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--window-size=1200,900",
         "--virtual-time-budget=20000", "--dump-dom", watched.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def hostile(folder: Path) -> Path:
    """A study in which whatever can be a name is an attack."""
    space = {HOSTILE: SPACE[LR], LR: SPACE[LR]}
    trials = [trial(i, params={HOSTILE: 10 ** (-1 - i / 5), LR: 10 ** (-4 + i / 5)}, space=space) for i in range(8)]
    return study(
        folder, [*trials, trial(8, "failed", why=HOSTILE, reason=HOSTILE, agent=HOSTILE)], words=[HOSTILE], study=HOSTILE
    )


def test_a_study_s_report_is_drawn_without_a_request_or_a_word_on_the_console(tmp_path: Path) -> None:
    page = report_study(study(tmp_path / "study", mixed(40)))[0]
    columns = page.read_text(encoding="utf-8").split('id="all-trials"')[0].count("<th scope") + 2
    dom, console = opened(page, head=columns)
    assert "8 drawn, 0 asked for" in dom and console == []
    values = re.search(r'<p id="order">(.*)</p>', dom)
    assert values
    numbers = [float(text) for text in values[1].split() if text != "-"]
    assert len(numbers) == 16 and numbers == sorted(numbers), "a click on the head sorts"


def test_a_hostile_study_and_a_run_do_nothing_else(tmp_path: Path) -> None:
    dom, console = opened(report_study(hostile(tmp_path / "study"))[0])
    assert "8 drawn, 0 asked for" in dom and console == []
    run(tmp_path / "outputs/runs/a/1", samples=HOSTILE)
    dom, console = opened(report_runs(["a"], tmp_path / "outputs", None)[0])
    assert "4 drawn, 0 asked for" in dom and console == []


def test_the_page_would_not_load_anything_and_this_would_be_seen(tmp_path: Path) -> None:
    page = report_study(study(tmp_path / "study", [trial(0)]))[0]
    _, console = opened(
        page, '<img src="http://127.0.0.1:9/x.png"><script>fetch("http://127.0.0.1:9/").catch(() => 0)</script>'
    )
    assert len(console) >= 2 and all("Content Security Policy" in line for line in console)
