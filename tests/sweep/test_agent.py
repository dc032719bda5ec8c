"""The laws of a study: each trial once, whatever is stopped, killed, paused or failing; busy slots; secrets that stay."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from gpt2_lightning.sweep import agent as agents
from gpt2_lightning.sweep.agent import Agent
from gpt2_lightning.sweep.ledger import Ledger
from gpt2_lightning.trainer import keep_to_share
from tests.lab import finish, kill_at_call
from tests.sweep.stage import Stage, kill

SLOW = {"ms": 30}


SERVERS = [
    pytest.param("sqlite", marks=pytest.mark.slow),
    pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow]),
]


@pytest.fixture(params=["journal", *SERVERS])
def storage(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("postgres").fresh_database() if request.param == "postgres" else request.param


@pytest.mark.parametrize("n", [1, 3])
def test_of_agents_that_start_together_each_place_is_trained_once(tmp_path: Path, storage: str, n: int) -> None:
    stage = Stage(tmp_path, storage)
    assert stage.together(n) == [0] * n
    stage.assert_whole()
    ended = [line["trial"] for line in stage.audit("end")]
    assert sorted(ended) == [f"trial-{i:03d}" for i in range(8)]
    assert len({json.dumps(point) for point, _ in stage.values().values()}) == 8


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_goes_on_to_its_total(tmp_path: Path, number: int, status: int) -> None:
    whole = Stage(tmp_path / "whole")
    assert whole.run() == 0
    stage = Stage(tmp_path / "cut", fake={"ms": 20})
    pid = stage.start()
    stage.wait_for(lambda: any(line["trial"] == "trial-003" for line in stage.audit("start")))
    kill(pid, number)
    assert finish(pid) == status
    assert stage.living() == []
    stopped = stage.audit("stopped")
    assert [line["trial"] for line in stopped] == ["trial-003"]
    before = state_of(stage, 3)
    assert stage.run() == 0
    stage.assert_whole()
    assert state_of(stage, 3) == before
    assert stage.audit("start")[4] | {"step": stopped[0]["step"], "trial": "trial-003"} == stage.audit("start")[4]
    assert stage.values() == whole.values()


def test_an_agent_whose_time_is_over_hands_back_and_is_requeued(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake={"ms": 20})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    pid = stage.start(**slurm)
    stage.wait_for(lambda: any(line["trial"] == "trial-002" for line in stage.audit("start")))
    kill(pid, signal.SIGUSR1)
    assert finish(pid) == 143, stage.said()
    assert (tmp_path / "asked").read_text() == "requeue 77_1\n"
    assert [line["trial"] for line in stage.audit("stopped")] == ["trial-002"]
    assert stage.run(**slurm) == 0
    stage.assert_whole()


def state_of(stage: Stage, n: int) -> dict[str, Any]:
    """Every file of the first n trials, its bytes and when it was written."""
    files = [p for i in range(n) for p in (stage.study / f"trial-{i:03d}").rglob("*") if p.is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_second_signal_ends_the_study_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake={"trial-001": "hang"})
    pid = stage.start()
    stage.wait_for(lambda: any(line["trial"] == "trial-001" for line in stage.audit("start")))
    time.sleep(0.3)
    kill(pid, signal.SIGINT)
    time.sleep(0.5)
    kill(pid, signal.SIGINT)
    assert finish(pid, 5) == 130
    stage.wait_for(lambda: not stage.living(), 5)


def test_after_a_killed_agent_the_next_one_goes_on_from_the_checkpoint(tmp_path: Path, storage: str) -> None:
    stage = Stage(tmp_path, storage, "sweep.lease_seconds=60", "trainer.max_steps=60", fake=SLOW)
    pid = stage.start()
    child = stage.wait_for(lambda: [line for line in stage.audit("start") if line["trial"] == "trial-001"])[0]["pid"]
    stage.wait_for(lambda: (stage.study / "trial-001/checkpoint.json").exists())
    kill(pid)
    finish(pid)
    stage.wait_for(lambda: not stage.living(), 5)
    began = len(stage.audit("start"))
    stage.fake = {}
    assert stage.run() == 0
    stage.assert_whole()
    again = stage.audit("start")[began]
    assert again["trial"] == "trial-001" and again["step"] > 0 and again["pid"] != child
    root = stage.roots()[1]
    assert len(root.attempts) == 2 and root.attempts[0].params == root.attempts[1].params
    assert "taken over" in stage.said()


def test_a_killed_child_goes_on_in_its_slot(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "trainer.max_steps=60", fake=SLOW)
    pid = stage.start()
    child = stage.wait_for(lambda: stage.audit("start"))[0]["pid"]
    stage.wait_for(lambda: (stage.study / "trial-000/metrics.jsonl").read_text())
    kill(child)
    stage.wait_for(lambda: len(stage.audit("start")) > 1)
    kill(pid, signal.SIGTERM)
    finish(pid)
    starts = stage.audit("start")
    assert starts[1]["trial"] == "trial-000" and starts[1]["agent"] == pid and starts[1]["step"] > 0
    assert len(stage.roots()[0].attempts) <= 2
    assert "goes on from its checkpoint" in stage.said()


FAILURES = {"trial-001": "memory", "trial-002": "diverge", "trial-003": "crash", "trial-004": "error", "trial-005": "hang"}
CLASSES = {
    "trial-001": "out of memory",
    "trial-002": "diverged",
    "trial-003": "killed",
    "trial-004": "error",
    "trial-005": "time",
}


def test_failures_are_classed_and_never_stop_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "STOP_SECONDS", 0.3)
    stage = Stage(tmp_path, "journal", "sweep.trial_seconds=2", "sweep.retries=2", fake=FAILURES)
    assert stage.run() == 0
    stage.assert_whole(8, ("complete", "failed"))
    outcomes = {root.name: root.outcome or {} for root in stage.roots()}
    assert {name: o["class"] for name, o in outcomes.items() if o["state"] == "failed"} == CLASSES
    assert "does not hold" in outcomes["trial-001"]["reason"] and "a long story" in outcomes["trial-004"]["log"]
    assert [line["trial"] for line in stage.audit("start")].count("trial-003") == 1 + 2
    told = stage.roots()[2].last
    others = [t.values[0] for t in stage.trials() if t.values and t.number != told.number]
    assert told.state == TrialState.COMPLETE and max(others[:1]) < told.values[0] < 1e6
    assert [row["trial"] for row in stage.table() if row["best"] == "1"] != ["trial-002"]
    assert stage.said().count("failed") >= 5


def test_settings_that_are_not_valid_together_fail_as_an_error(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "model.n_head=choice(2, 4)", "model.n_embd=choice(64, 66)", "sweep.sampler=grid")
    stage.words = [w for w in stage.words if not w.startswith(("optimizer.lr=", "loss.beta=", "sweep.n_trials"))]
    assert stage.run() == 0, stage.said()
    outcomes = [root.outcome or {} for root in stage.roots()]
    bad = [o for o in outcomes if o["class"] == "error"]
    assert len(bad) == 1 and "n_head" in bad[0]["reason"]
    assert len([o for o in outcomes if o["state"] == "complete"]) == len(outcomes) - 1 >= 3


def pause_points() -> list[Any]:
    """Where an agent is killed: (owner, function, call)."""
    return [
        pytest.param(Ledger, "queue_again", 1, id="between failing a trial and queueing its successor"),
        pytest.param(Ledger, "conclude", 2, id="between the outcome and the state"),
        pytest.param(Ledger, "mine", 3, id="between the claim and its place"),
        pytest.param(Ledger, "note", 3, id="between the parameters and the note of them"),
        pytest.param(Agent, "settings", 1, id="before the baseline's settings are written"),
        pytest.param(Agent, "start", 2, id="before the child"),
        pytest.param(Ledger, "tell", 2, id="before the outcome"),
    ]


def test_top_k_over_ten_values_trains_once_or_not_at_all(tmp_path: Path) -> None:
    ks = "choice(1, 2, 4, 8, 12, 16, 24, 32, 64, null)"
    stage = Stage(tmp_path, "journal", "optimizer.lr=1e-3", "loss.beta=0", f"sampler.k={ks}")
    assert stage.run() == 0, stage.said()
    assert len(stage.audit("start")) == len(stage.audit("score")) == 1
    (row,) = stage.table()
    assert (row["state"], row["decode"]) == ("complete", '{"sampler.k": 8}')
    assert len((stage.study / "decode.csv").read_text().splitlines()) == 11
    run = tmp_path / "outputs/runs/run/one"
    shutil.copytree(stage.study / "trial-000", run)
    shutil.copy(stage.study / "configs/trial-000.yaml", run / "config.yaml")
    assert stage.run("sweep.name=again") == 0, stage.said()
    assert (len(stage.audit("start")), len(stage.audit("score"))) == (1, 2)
    assert f"(trained by {run.name})" in stage.said() and stage.table("again")[0]["state"] == "complete"


@pytest.mark.parametrize("seed", [1, 2])
def test_settings_that_diverge_are_left_and_never_best(tmp_path: Path, seed: int) -> None:
    """A third of the space, learning rates up to ten times too high, diverges; in one slot outcomes come in one order."""
    words = ("sweep.sampler=tpe", "sweep.n_trials=30", "sweep.slots=1", f"sweep.seed={seed}", "sweep.baseline=false")
    stage = Stage(tmp_path, "journal", *words, fake={"diverge_above": 1e-2, "ms": 0})
    assert stage.run(seconds=120) == 0, stage.said()
    table = sorted(stage.table(), key=lambda row: row["trial"])
    diverged = [row["class"] == "diverged" for row in table]
    assert any(diverged) and sum(diverged[10:]) / len(diverged[10:]) < 0.25, diverged
    assert not any(row["best"] == "1" for row, bad in zip(table, diverged, strict=True) if bad)


@pytest.mark.parametrize("owner, name, call", pause_points())
def test_an_agent_killed_anywhere_loses_nothing(tmp_path: Path, owner: Any, name: str, call: int) -> None:
    stage = Stage(tmp_path, "journal", "sweep.n_trials=4")
    if name == "queue_again":
        stage.fake = {"ms": 20}
        pid = stage.start()
        stage.wait_for(lambda: any(line["trial"] == "trial-001" for line in stage.audit("start")))
        kill(pid)
        finish(pid)
        stage.fake = {}
    assert stage.run(broken=kill_at_call(owner, name, call)) == -9
    assert stage.run() == 0
    stage.assert_whole(4)
    ended = [line["trial"] for line in stage.audit("end")]
    assert sorted(ended) == [f"trial-{i:03d}" for i in range(4)]
    assert stage.roots(4)[0].last.user_attrs["point"] == {"optimizer.lr": 0.001, "loss.beta": 0.0}


def paused_between_writes(stage: Stage, pid: int) -> bool:
    """Whether the agent is paused now; it goes on where it holds SQLite's one lock, for which all others would wait."""
    kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    for path in stage.study.glob("*.db") if stage.storage == "sqlite" else ():
        try:
            with closing(sqlite3.connect(path, timeout=0)) as database:
                database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            kill(pid, signal.SIGCONT)
            return False
    return True


def test_a_paused_agent_lets_go_of_what_was_taken_over(tmp_path: Path, storage: str) -> None:
    stage = Stage(tmp_path, storage, "sweep.lease_seconds=1", "trainer.max_steps=200", "sweep.n_trials=1", fake={"ms": 60})
    pid = stage.start()
    child = stage.wait_for(lambda: stage.audit("start"))[0]["pid"]
    stage.wait_for(lambda: (stage.study / "trial-000/checkpoint.json").exists())
    stage.wait_for(lambda: paused_between_writes(stage, pid))
    stage.fake = {"ms": 5}
    other = stage.start(log="other")
    stage.wait_for(lambda: len(stage.audit("start")) > 1)
    assert child not in stage.living()
    stage.wait_for(lambda: any(line["trial"] == "trial-000" for line in stage.audit("end")))
    kill(pid, signal.SIGCONT)
    assert [finish(pid), finish(other)] == [0, 0]
    stage.assert_whole(1)
    assert "another agent's now" in stage.said()
    assert "trial-000 complete" not in stage.said() and "trial-000 complete" in stage.said("other")
    assert [line["trial"] for line in stage.audit("end")].count("trial-000") == 1


def test_the_baseline_is_trial_000_and_never_pruned(tmp_path: Path) -> None:
    options = ("sweep.pruner=threshold", "sweep.pruner_options={upper: 0.5}", "trainer.max_steps=100")
    stage = Stage(tmp_path, "journal", *options, fake={"ms": 20})
    assert stage.run() == 0
    stage.assert_whole(8, ("complete", "pruned"))
    rows = stage.table()
    assert [row["state"] for row in rows] == ["complete", *["pruned"] * 7]
    assert rows[0]["optimizer.lr"] == "0.001" and float(rows[0]["steps"]) == 100
    for line in stage.audit("stopped"):
        assert 5 <= line["step"] < 100


def test_several_objectives_are_pruned_by_the_first(tmp_path: Path) -> None:
    words = ("sweep.objective=[val/cross_entropy,speed/peak_memory]", "sweep.pruner=halving", "sweep.n_trials=10",
             "trainer.max_steps=60", "sweep.slots=3", "sweep.constraints={peak_memory: 1e4}")  # fmt: skip
    stage = Stage(tmp_path, "journal", *words, fake={"ms": 15})
    assert stage.run() == 0, stage.said()
    ledger = stage.ledger(10, directions=("minimize", "minimize"))
    outcomes = [root.outcome or {} for root in ledger.roots()]
    states = [o["state"] for o in outcomes]
    assert states[0] == "complete" and "pruned" in states and set(states) == {"complete", "pruned"}
    for root in ledger.roots():
        if root.outcome and root.outcome["state"] == "complete":
            values = root.outcome["values"]
            assert set(values) == {"val/cross_entropy", "speed/peak_memory"}
            assert root.outcome["broken"] == (["peak_memory"] if values["speed/peak_memory"] > 1e4 else [])
    best = {row["trial"] for row in stage.table() if row["best"] == "1"}
    broken = {root.name for root in ledger.roots() if root.outcome and root.outcome.get("broken")}
    assert best and not best & broken


def test_enqueued_points_follow_the_baseline(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "sweep.enqueue=[{optimizer.lr: 0.05, loss.beta: 0.01}, {optimizer.lr: 0.02}]")
    assert stage.together(2) == [0, 0]
    stage.assert_whole()
    points = [root.last.user_attrs["point"] for root in stage.roots()]
    assert points[1] == {"optimizer.lr": 0.05, "loss.beta": 0.01} and points[2]["optimizer.lr"] == 0.02


def test_a_warm_start_is_known_to_the_sampler_and_takes_no_place(tmp_path: Path, storage: str) -> None:
    stage = Stage(tmp_path, storage)
    assert stage.run("sweep.name=first") == 0
    assert stage.together(2, "sweep.name=study", "sweep.warm_start=first", "sweep.n_trials=3") == [0, 0]
    stage.assert_whole(3)
    learnt = [t for t in stage.trials() if "from" in t.user_attrs]
    assert sorted(t.user_attrs["from"] for t in learnt) == [f"first/trial-{i:03d}" for i in range(8)]
    there = {root.name: root.last for root in stage.ledger(8, "first").roots()}
    for t in learnt:
        source = there[t.user_attrs["from"].removeprefix("first/")]
        assert (t.params, t.values, t.state) == (source.params, source.values, TrialState.COMPLETE)
    assert stage.run("sweep.warm_start=nowhere", "sweep.name=third") == 5


def test_confirmation_trains_best_and_baseline_once_for_each_seed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "sweep.confirm_seeds=2", "sweep.n_trials=5")
    assert stage.together(3) == [0, 0, 0]
    stage.assert_whole(5)
    best = next(row["trial"] for row in stage.table() if row["best"] == "1")
    names = sorted(line["trial"] for line in stage.audit("end") if line["trial"].startswith("confirm"))
    assert names == sorted(f"confirm-{side}-{i}" for side in (best, "baseline") for i in (1, 2))
    assert "2 fresh seeds" in stage.said() and "p = " in stage.said()


def test_a_study_goes_on_where_more_trials_are_asked_for_and_says_when_it_is_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.run("sweep.n_trials=3") == 0
    assert stage.run("sweep.n_trials=5") == 0
    assert [line["trial"] for line in stage.audit("end")] == [f"trial-{i:03d}" for i in range(5)]
    assert stage.run("sweep.n_trials=5") == 0
    assert "study study is finished: 5 trials" in stage.said()
    assert len(stage.audit("start")) == 5
    stage.assert_whole(5)


def test_a_training_that_equals_a_finished_one_is_not_done_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "optimizer.lr=choice(1e-3, 3e-3)", "sweep.n_trials=6")
    stage.words = [word for word in stage.words if not word.startswith(("loss.beta", "optimizer.lr=tag"))]
    assert stage.run() == 0
    stage.assert_whole(6)
    assert len(stage.audit("end")) == 2
    assert "trained by trial-000" in stage.said()


def test_a_changed_question_is_refused_or_begins_a_new_version(tmp_path: Path, storage: str) -> None:
    stage = Stage(tmp_path, storage, "sweep.n_trials=2")
    assert stage.run() == 0
    for word, shown in (
        ("optimizer.lr=interval(1e-4, 1e-2)", "optimizer.lr"),
        ("sweep.objective=val/perplexity", "objective"),
        ("data.batch_size=8", "data.batch_size"),
    ):
        assert stage.run(word) == 5
        assert f"was asked something else: {'space: ' if 'lr' in word else ''}" in stage.said() and shown in stage.said()
    assert len(stage.audit("start")) == 2 and not (stage.folder / "outputs/sweeps/study-v2").exists()
    assert stage.run("data.batch_size=8", "sweep.new_version=true") == 0
    assert len(stage.audit("end")) == 4
    assert stage.run("data.batch_size=8") == 0
    assert stage.run("data.batch_size=8", "sweep.new_version=true") == 0
    assert stage.said().count("study study-v2 is finished") == 2
    assert len(stage.audit("start")) == 4 and len(stage.table("study-v2")) == 2


CANARY = "canary-7431"


def test_a_password_is_nowhere(tmp_path: Path, postgres: Any) -> None:
    import psycopg

    url = postgres.fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE canary SUPERUSER LOGIN PASSWORD '{CANARY}'")
    url = f"postgresql://canary:{CANARY}@" + url.partition("@")[2]
    try:
        for name, words, env in (
            ("a", [f"sweep.storage={url}"], {}),
            ("b", [], {"GPT2_LIGHTNING_STORAGE": url}),
            ("c", [f"sweep.storage={url.replace('canary:', 'nobody:')}"], {}),
        ):
            stage = Stage(tmp_path / name, "journal", "sweep.n_trials=2", f"sweep.name={name}", fake={"trial-001": "error"})
            assert stage.run(*words, **env) == (5 if name == "c" else 0), stage.said()
            assert not any(line.get("secret") for line in stage.audit())
            for path in stage.folder.rglob("*"):
                assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    finally:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
            connection.execute("DROP ROLE canary")


@pytest.mark.parametrize("gpus, n, slots", [("4,5,6,7", 2, 2), ("4", 1, 1), ("4,5", 1, 2), ("4,5,6,7", 1, 4)])
def test_faked_gpus_are_shared_out_and_all_filled(tmp_path: Path, gpus: str, n: int, slots: int) -> None:
    words = (f"sweep.devices_per_trial={n}", "trainer.accelerator=auto", "sweep.n_trials=6", "trainer.max_steps=40")
    stage = Stage(tmp_path, "journal", *words, fake={"ms": 25})
    assert stage.run(CUDA_VISIBLE_DEVICES=gpus) == 0, stage.said()
    stage.assert_whole(6)
    running: dict[str, Any] = {}
    most = 0
    for line in stage.audit():
        if line["event"] == "end":
            del running[line["trial"]]
        if line["event"] == "start":
            running[line["trial"]] = line["env"]
            used = [gpu for env in running.values() for gpu in env["CUDA_VISIBLE_DEVICES"].split(",")]
            assert len(used) == n * len(running) == len(set(used)) and set(used) <= set(gpus.split(","))
            most = max(most, len(running))
    assert most == slots
    envs = [line["env"] for line in stage.audit("start")]
    ports = [env["MASTER_PORT"] for env in envs]
    assert len(set(ports)) == (6 if n > 1 else 1)
    if slots * n > 1:
        assert {int(env["OMP_NUM_THREADS"]) for env in envs} == {max(1, len(os.sched_getaffinity(0)) // (slots * n))}


@pytest.mark.parametrize("gpus, slots, share", [("4", 2, "0.5"), ("4,5", 3, "0.5"), ("4,5", 2, "1.0"), ("", 2, None)])
def test_trials_that_share_a_gpu_have_a_part_of_its_memory(tmp_path: Path, gpus: str, slots: int, share: str | None) -> None:
    stage = Stage(tmp_path, "journal", "trainer.accelerator=auto", f"sweep.slots={slots}", "sweep.n_trials=3")
    assert stage.run(CUDA_VISIBLE_DEVICES=gpus) == 0, stage.said()
    assert {line["env"]["GPT2_LIGHTNING_GPU_SHARE"] for line in stage.audit("start")} == {share}


def test_a_process_keeps_to_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[float, int]] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *asked: kept.append(asked))
    keep_to_share(1.0, range(2))
    assert kept == []
    keep_to_share(0.5, range(2))
    assert kept == [(0.5, 0), (0.5, 1)]


def test_slots_are_refilled_at_once(tmp_path: Path) -> None:
    """The share of busy time is printed; what is asserted has room for a loaded machine."""
    words = ("sweep.slots=8", "sweep.n_trials=32", "sweep.pruner=threshold", "sweep.pruner_options={upper: 6.5}",
             "trainer.max_steps=50", "trainer.val_every=25")  # fmt: skip
    stage = Stage(tmp_path, "journal", *words, fake={"ms": 75})
    assert stage.run(seconds=120) == 0, stage.said()
    busy, gaps = occupation(stage, 8)
    pruned = sum(row["state"] == "pruned" for row in stage.table())
    print(f"\n{pruned} of 32 pruned, slots busy {busy:.0%}, longest gap {max(gaps):.2f} s, mean {sum(gaps) / len(gaps):.2f} s")
    assert pruned >= 16 and busy > 0.5


def occupation(stage: Stage, slots: int) -> tuple[float, list[float]]:
    """The share of the slots' time that is used while there are trials to start, and the gaps between an end and a start."""
    lines = sorted(stage.audit(), key=lambda line: line["time"])
    starts = [line["time"] for line in lines if line["event"] == "start"]
    ends = [line["time"] for line in lines if line["event"] in ("end", "stopped")]
    begin, last = starts[slots - 1], starts[-1]
    used = sum(max(0.0, min(last, e) - max(begin, s)) for s, e in spans(lines))
    gaps = [start - end for start, end in zip(starts[slots:], ends, strict=False)]
    return used / (slots * (last - begin)), gaps


def spans(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    begun: dict[int, float] = {}
    found = []
    for line in lines:
        if line["event"] == "start":
            begun[line["pid"]] = line["time"]
        elif line["event"] in ("end", "stopped"):
            found.append((begun[line["pid"]], line["time"]))
    return found


def test_weights_to_start_from_are_looked_for_before_any_trial(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "journal", "init=weights", "sweep.n_trials=2")
    assert stage.run() == 4
    assert "weights to start from (init = weights): is not on disk" in stage.said()
    assert not stage.study.exists()
    (tmp_path / "weights").mkdir()
    assert stage.run() == 0
    (tmp_path / "weights").rmdir()
    assert stage.run() == 0 and "study study is finished" in stage.said()
    assert stage.run("sweep.n_trials=3") == 4
    assert len(stage.audit("start")) == 2
