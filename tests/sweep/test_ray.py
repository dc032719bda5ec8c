"""A study on a Ray cluster: two nodes on this machine, one of which goes away in the middle; and what is refused before it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2_lightning.__main__ import main
from gpt2_lightning.errors import MachineError
from gpt2_lightning.sweep.plan import read_plan
from tests.sweep.stage import FAKE, SPACE, Stage

ABSENT = "Ray is not installed: pip install 'gpt2-lightning[ray]'"
needs_ray = [pytest.mark.ray, pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=ABSENT)]
STUDY = ["model=nano", "trainer=cpu", *SPACE, "launch=ray"]
CODE = f"import sys; from gpt2_lightning.sweep import pool; pool.COMMAND = {FAKE!r}; " \
    "from gpt2_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))"  # fmt: skip
FAKE_TRIAL = {"ms": 50}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes, of one core and of two; their processes have the trials' environment."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("AUDIT", str(tmp_path / "audit"))
    monkeypatch.setenv("FAKE", json.dumps(FAKE_TRIAL))
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        found.other = found.add_node(num_cpus=2)
        yield found
    finally:
        found.shutdown()


def controller(stage: Stage, cluster: Any, *words: str) -> subprocess.Popen[bytes]:
    """The agent in a process of its own: one that knows Ray is not to be forked from."""
    words = ("sweep", *stage.words, "launch=ray", f"launch.address={cluster.address}", *words)
    log = (stage.folder / "log").open("ab")
    return subprocess.Popen([sys.executable, "-c", CODE, *words], cwd=stage.folder, stdout=log, stderr=log)


def of_node(stage: Stage, node: Any) -> list[str]:
    """The trials that were started on a node and have reached a checkpoint."""
    raylet = node.all_processes["raylet"][0].process.pid
    mine = [line["trial"] for line in stage.audit("start") if parent(line["agent"]) == raylet]
    return [name for name in mine if (stage.study / name / "checkpoint.json").exists()]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("only", [pytest.param(None, marks=needs_ray)])
def test_a_lost_nodes_trials_go_on_elsewhere(tmp_path: Path, cluster: Any, only: None) -> None:
    whole = Stage(tmp_path / "whole", "journal", "trainer.max_steps=60")
    assert whole.run() == 0
    stage = Stage(tmp_path, "journal", "trainer.max_steps=60", "sweep.lease_seconds=60")
    agent = controller(stage, cluster)
    lost = stage.wait_for(lambda: of_node(stage, cluster.other), 90)
    cluster.remove_node(cluster.other, allow_graceful=False)
    assert agent.wait(180) == 0, stage.said()
    stage.assert_whole()
    ended = [line["trial"] for line in stage.audit("end")]
    assert sorted(ended) == [f"trial-{i:03d}" for i in range(8)]
    again = [line for line in stage.audit("start") if line["trial"] == lost[0]]
    assert len(again) == 2 and again[1]["step"] > 0, again
    assert "its node is gone" in stage.said()
    assert stage.values() == whole.values()
    assert all(len(root.attempts) == 1 for root in stage.roots())


@pytest.fixture
def elsewhere(cluster: Any, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two more nodes, each with processes, an output folder, and sockets that the others do not see."""
    (tmp_path / "outputs").mkdir()
    found = [hidden_node(cluster, tmp_path, log) for log in ("third.log", "fourth.log")]
    yield found
    for node in found:
        node.kill()
        node.wait()


def hidden_node(cluster: Any, folder: Path, log: str) -> subprocess.Popen[bytes]:
    """Ray names a node's sockets by what it finds: in one folder, two nodes that start together may take the same names."""
    hide = "".join(f"mount -t tmpfs none {path} && " for path in (folder / "outputs", cluster.head_node.temp_dir))
    ray = f"{sys.executable} -m ray.scripts.scripts start --block --address={cluster.address}"
    limits = "--num-cpus=2 --object-store-memory=80000000 --min-worker-port=0 --max-worker-port=0"
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / log).open("ab") as file:
        return subprocess.Popen([*apart, "sh", "-c", f"{hide}exec {ray} {limits}"], stdout=file, stderr=file)


def nodes_alive(cluster: Any, started: list[subprocess.Popen[bytes]]) -> int:
    assert all(node.poll() is None for node in started), "a node ended as it started: see its log"
    return sum(node["Alive"] for node in cluster.global_state.node_table())


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs unshare, as root")
@pytest.mark.parametrize("only", [pytest.param(None, marks=needs_ray)])
def test_without_a_shared_folder_what_a_lost_node_trained_is_trained_again(
    tmp_path: Path, cluster: Any, elsewhere: list[subprocess.Popen[bytes]], only: None
) -> None:
    whole = Stage(tmp_path / "whole", "journal", "trainer.max_steps=60")
    assert whole.run() == 0
    whole.wait_for(lambda: nodes_alive(cluster, elsewhere) == 4, 120)
    cluster.remove_node(cluster.other)
    stage = Stage(tmp_path, "journal", "trainer.max_steps=60", "sweep.lease_seconds=60", "sweep.slots=4")
    agent = controller(stage, cluster, "launch.cpus=2")  # which the head has not
    stage.wait_for(lambda: len(stage.audit("start")) > 1, 120)  # one on each
    elsewhere[0].kill()
    assert agent.wait(240) == 0, stage.said()
    stage.assert_whole()
    assert stage.values() == whole.values()
    ended = [line["trial"] for line in stage.audit("end")]
    assert sorted(ended) == [f"trial-{i:03d}" for i in range(8)]
    starts = stage.audit("start")
    assert len(starts) > 8 and {line["step"] for line in starts} == {0}
    assert "does not see" in stage.said() and "its node is gone" in stage.said()
    assert not list(stage.study.glob("trial-*/checkpoint.json"))


def test_without_ray_it_is_said_how_to_get_it(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "gpt2_lightning.sweep.cluster", raising=False)
    assert main(["sweep", *STUDY]) == 7
    assert capsys.readouterr().err == (
        "error: Ray (launch = ray): is not installed here. Install it: pip install 'gpt2-lightning[ray]'\n"
    )
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["+experiment=quickstart", "launch=ray"], 2, "is for studies"),
        ([*STUDY, "launch.address=ray://head:10001"], 2, "must be auto or HOST:PORT"),
        ([*STUDY, "launch.cpus=0"], 2, "launch.cpus = 0"),
        ([*STUDY, "dry_run=true"], 2, "needs a scheduler"),
        pytest.param([*STUDY, "launch.address=127.0.0.1:1"], 7, "no cluster answers", marks=needs_ray),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(here: Path, capsys: Any, words: list[str], status: int, said: str) -> None:
    assert main(["sweep", *words] if STUDY[0] in words else words) == status
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "nodes", "found"),
    [
        (["trainer=gpu", "sweep.devices_per_trial=8"], [{"CPU": 64, "GPU": 4}] * 2, "8 GPUs asked for, and no node of the"),
        (["trainer=gpu", "sweep.devices_per_trial=2"], [{"CPU": 64, "GPU": 5}, {"CPU": 1, "GPU": 8}, {"CPU": 8}], 3),
        (["trainer=cpu", "launch.cpus=3"], [{"CPU": 8, "GPU": 1}, {"CPU": 2}], 2),
        (["trainer=cpu", "launch.cpus=3", "sweep.slots=5"], [{"CPU": 8}], 5),
        (["trainer=cpu", "launch.cpus=9"], [{"CPU": 8}], "no node of the cluster has as many cores"),
        (["trainer=auto"], [{"CPU": 8, "GPU": 2}], 2),
    ],
)
@pytest.mark.parametrize("only", [pytest.param(None, marks=needs_ray)])
def test_slots_are_what_the_nodes_have_room_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], nodes: list[dict[str, int]], found: int | str, only: None
) -> None:
    from gpt2_lightning.sweep import cluster

    monkeypatch.setattr(cluster, "join", lambda address: None)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    plan = read_plan(["model=nano", *SPACE, "launch=ray", *words])
    if isinstance(found, int):
        slots, _ = cluster.connect(plan, plan.variants.start()[0])
        assert [slot.index for slot in slots] == list(range(found))
    else:
        with pytest.raises(MachineError, match=found):
            cluster.connect(plan, plan.variants.start()[0])
