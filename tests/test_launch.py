"""A run and a study as jobs of Slurm, as far as that can be seen without it: the script, what is handed on, what is refused."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_lightning.__main__ import main
from gpt2_lightning.config import comparable, compose_config, to_yaml
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.folder import RunFolder
from gpt2_lightning.settings.launch import SlurmLaunch, seconds
from gpt2_lightning.settings.sweep import SweepConfig
from gpt2_lightning.settings.trainer import TrainerConfig
from gpt2_lightning.sweep import pool
from gpt2_lightning.sweep.pool import make_slots
from gpt2_lightning.sweep.storage import VARIABLE
from gpt2_lightning.variants import Variants
from tests.conftest import Command

RUN = ("+experiment=quickstart", "launch=slurm")
STUDY = (*RUN, "+sweeps=lr")
SECRET = "s3cret-Canary"
DOCS = (Path(__file__).parents[1] / "docs/slurm.md").read_text(encoding="utf-8")
URL = f"postgresql://me:{SECRET}@127.0.0.1:1/study"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The script of a dry run."""
    assert main([*words, "dry_run=true"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def options(script: str) -> set[str]:
    """The options of sbatch in a script."""
    return {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}


def command(script: str) -> list[str]:
    """The words of the one command, without srun's own."""
    words = shlex.split(script.splitlines()[-1])
    return words[words.index(sys.executable) :]


def test_a_run_gets_what_was_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("launch.partition=gpu", "launch.time=1-04:00:00", "launch.nodes=2", "launch.gpus_per_node=4", "launch.account=lab")
    more = ("launch.options={qos: high, mail_type: END, exclusive: true, nice: null, mincpus: 0}", "launch.options.mem=64G")
    script = shown(capsys, *RUN, *asked, *more, "launch.cpus_per_task=8", "launch.setup=['module load cuda']", "seed=3")
    assert options(script) == {
        "account=lab", "cpus-per-task=8", "exclusive", "gpus-per-node=4", "job-name=quickstart", "mail-type=END", "mem=64G",
        "mincpus=0", "nodes=2", "ntasks-per-node=4", "open-mode=append", f"output={here}/outputs/slurm/%j.log",
        "partition=gpu", "qos=high",
        "requeue", "signal=USR1@120", "time=1-04:00:00",
    }  # fmt: skip
    assert script.index("module load cuda\nexport OMP_NUM_THREADS=8\n") < script.index("\nsetsid srun ")
    words = command(script)
    assert words[1:7] == ["-u", "-m", "gpt2_lightning", "train", "+experiment=quickstart", "seed=3"]
    assert words[7:9] == ["trainer.nodes=2", "trainer.devices=4"]
    assert words[9].startswith("run.id=20") and words[10:] == ["launch=local"]
    assert "\nsetsid srun --kill-on-bad-exit=1 --cpus-per-task=8 " in script, "srun does not take sbatch's"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "nodes", "devices", "gpus"),
    [
        ((), 1, 1, None),
        (("trainer=gpu",), 1, 1, 1),
        (("trainer.nodes=3", "trainer.devices=2", "trainer=cpu"), 3, 2, None),
        (("launch.nodes=3", "trainer.nodes=3", "launch.gpus_per_node=2", "trainer.devices=2"), 3, 2, 2),
        (("launch.nodes=2", "trainer.devices=null", "launch.gpus_per_node=8"), 2, 8, 8),
    ],
)
def test_every_rank_is_a_task(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], nodes: int, devices: int, gpus: int | None
) -> None:
    script = shown(capsys, *RUN, *words)
    assert {f"nodes={nodes}", f"ntasks-per-node={devices}"} <= options(script)
    assert [o for o in options(script) if "gpus" in o] == ([f"gpus-per-node={gpus}"] if gpus else [])
    assert f"signal={'' if nodes > 1 else 'B:'}USR1@120" in options(script)
    starts = "setsid srun --kill-on-bad-exit=1" if nodes > 1 else "exec"
    assert script.splitlines()[-1].startswith(f"{starts} {sys.executable} -u -m gpt2_lightning train ")
    assert [w for w in command(script) if w.startswith(("trainer.nodes", "trainer.devices"))] == [
        f"trainer.nodes={nodes}",
        f"trainer.devices={devices}",
    ]


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_was_typed_reaches_the_job_letter_by_letter(here: Path, capsys: pytest.CaptureFixture[str], nodes: int) -> None:
    hostile = ["run.name='a=b+c'", "samples.prompts=['$(touch pwned) `touch pwned`; touch pwned','\"x\" \\\\ %j !! #é\n&|>']"]
    script = shown(capsys, *RUN, *hostile, f"launch.nodes={nodes}")
    (here / "bin").mkdir()
    (here / "bin/srun").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (here / "bin/srun").chmod(0o755)
    script = script.replace(f"exec {sys.executable}", "exec srun")
    done = subprocess.run(["bash", "-c", script], env={"PATH": f"{here}/bin:/usr/bin:/bin"}, capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.stderr == "" and said[said.index("train") + 1 :][: len(hostile) + 1] == ["+experiment=quickstart", *hostile]
    assert not (here / "pwned").exists()
    config = compose_config(said[said.index("train") + 1 :])
    assert config.samples.prompts[1].endswith("#é\n&|>")


def test_a_study_is_an_array_of_agents(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = "optimizer.lr=tag(log, interval(1e-3, 1e-2))"
    script = shown(capsys, *STUDY, space, "sweep.agents=4", "sweep.storage=journal:/shared/a b.log", "launch.gpus_per_node=2")
    assert {"array=0-3", "job-name=lr", "nodes=1", "ntasks-per-node=1", "gpus-per-node=2"} <= options(script)
    assert f"output={here}/outputs/slurm/%A_%a.log" in options(script)
    words = command(script)[5:]
    assert words == ["+experiment=quickstart", "+sweeps=lr", space, "sweep.storage=journal:/shared/a b.log", "launch=local"]
    assert not any(option.startswith("array") for option in options(shown(capsys, *STUDY)))


BAD = [
    (("launch=slrum",), "launch = slrum", "There are slurm, ray, local"),
    (("launch=slurm", "launch.partiton=a"), "launch.partiton = a", "Did you mean launch.partition?"),
    (("launch.partition=a",), "launch.partition = a", "Did you mean launch.partition with launch=slurm?"),
    (("launch=slurm", "launch.partition='a\"b'"), "launch.partition", "must be printable text without quotes"),
    (("launch=slurm", "launch.account='a\nb'"), "launch.account", "must be printable text without quotes"),
    (("launch=slurm", "launch.time=60"), "launch.time = 60", "must be H:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"),
    (("launch=slurm", "launch.time=4:00"), "launch.time = 4:00", "in a file in quotes"),
    (("launch=slurm", "launch.time=tomorrow"), "launch.time = tomorrow", "Set launch.time=4:00:00"),
    (("launch=slurm", "launch.time=0:02:00"), "launch.time = 0:02:00", "longer than launch.signal_seconds = 120"),
    (("launch=slurm", "launch.nodes=0"), "launch.nodes = 0", "must be at least 1"),
    (("launch=slurm", "launch.nodes=two"), "launch.nodes = two", "could not be converted to Integer"),
    (("launch=slurm", "launch.options.array=0-3"), "launch.options", "'array' follows from sweep.agents. Set sweep.agents"),
    (("launch=slurm", "launch.options.ntasks_per_node=3"), "launch.options", "follows from trainer.devices"),
    (("launch=slurm", "launch.options={a.b: 1}"), "launch.options", "'a.b' is no long name of an option"),
    (("launch=slurm", "launch.options={p: gpu}"), "launch.options", "'p' is no long name of an option"),
    (("launch=slurm", "launch.options.comment='a\n#SBATCH --uid=0'"), "launch.options", "'comment' must be printable text"),
    (("launch=slurm", "launch.options.comment=[1]"), "launch.options", "'comment' must be text, a number, true, or null"),
    (("launch=slurm", "launch.setup=['a\nb']"), "launch.setup", "must be lines of printable text"),
    (("launch=slurm", "launch.nodes=2", "trainer.nodes=4"), "launch.nodes = 2", "differs from trainer.nodes = 4"),
    (("launch=slurm", "launch.gpus_per_node=2", "trainer.devices=1"), "launch.gpus_per_node = 2", "Set trainer.devices=2"),
    (("launch=slurm", "launch.gpus_per_node=2", "trainer=cpu"), "launch.gpus_per_node = 2", "=cpu uses none"),
    (("launch=slurm", "trainer.devices=null"), "trainer.devices = null", "Set launch.gpus_per_node=4"),
    (("launch=slurm", 'run.folder="it\'s"'), "run.folder", "without quotes and backslashes, for Slurm"),
    (("launch=slurm", "optimizer.lr=-1"), "optimizer.lr = -1", "must be at least 0"),
    (("launch=slurm", "run.name=../x"), "run.name = ../x", "must be 1 to 128 letters"),
    (("dry_run=true",), "dry_run = true", "Add launch=slurm to see its script"),
    (("+sweeps=lr", "sweep.agents=2"), "sweep.agents = 2", "are started by launch=slurm"),
    (("+sweeps=lr", "launch=slurm", "sweep.agents=0"), "sweep.agents = 0", "must be at least 1"),
    (("+sweeps=lr", "launch=slurm", "sweep.agents=2", "sweep.storage=sqlite"), "sweep.storage = sqlite", "not for 2 agents"),
    (("+sweeps=lr", "launch=slurm", "sweep.agents=2", "sweep.storage=sqlite:////a"), "sqlite:////a", "not for 2 agents"),
    (("+sweeps=lr", "launch=slurm", "launch.nodes=2"), "launch.nodes = 2", "Set sweep.agents=2: each has a node"),
    (("+sweeps=lr", "launch=slurm", "launch.gpus_per_node=1", "sweep.devices_per_trial=2"), "= 1", "devices_per_trial = 2"),
    (("+sweeps=lr", "launch=slurm", "launch.gpus_per_node=1", "trainer=cpu"), "launch.gpus_per_node = 1", "uses none"),
    (("+sweeps=lr", "launch.partition=choice(a,b)", "launch=slurm"), "launch.partition", "the engine's own to set"),
]


@pytest.mark.parametrize(("words", "what", "rule"), BAD)
def test_what_cannot_be_submitted_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str, rule: str
) -> None:
    assert main(["+experiment=quickstart", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and what in said.err and rule in said.err, said.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "there"),
    [("4:00:00", 14400), ("0:10:30", 630), ("1-12", 129600), ("2-04:30", 189000), ("1-00:00:01", 86401), ("14400", None),
     ("30:00", None), ("4:0:0", None), ("-1:00:00", None), ("1-", None), ("4:00:00 ", None), ("infinite", None)],
)  # fmt: skip
def test_a_time_limit_means_what_it_means_to_slurm(text: str, there: int | None) -> None:
    assert seconds(text) == there


def test_a_launch_is_no_part_of_a_run(here: Path) -> None:
    asked = ["launch=slurm", "launch.partition=a", "dry_run=true", "launch.options.qos=high"]
    assert comparable(compose_config(asked)) == comparable(compose_config([]))
    assert "launch" not in to_yaml(compose_config(asked))
    launch, dry_run = Variants(asked).start()
    assert launch == SlurmLaunch(partition="a", options={"qos": "high"}) and dry_run


def test_a_file_of_ones_own_is_a_cluster(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "conf/launch").mkdir(parents=True)
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.S)
    (here / "conf/launch/ours.yaml").write_text(text)
    assert {"partition=a100", "time=1-00:00:00", "qos=normal"} <= options(shown(capsys, "launch=ours"))
    assert {"partition=a100", "qos=high"} <= options(shown(capsys, *RUN[:1], "launch=ours", "launch.options.qos=high"))


def test_the_commands_of_the_documentation_show_their_scripts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", DOCS, re.S)
    for line in block.splitlines():
        assert options(shown(capsys, *shlex.split(line)[3:]))


def test_a_runs_own_file_is_submitted_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(to_yaml(compose_config(["+experiment=quickstart"])))
    script = shown(capsys, "train", "config=mine.yaml", "launch=slurm", "launch.nodes=2", "seed=5")
    assert command(script)[5:9] == ["config=mine.yaml", "seed=5", "trainer.nodes=2", "trainer.devices=1"]


def test_every_start_of_a_job_finds_the_run_that_there_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = (RunFolder(compose_config(["+experiment=quickstart", *words])) for words in ([], ["trainer.nodes=2"]))
    run.lock.release()
    other.lock.release()
    assert f"run.id={run.path.name}" in command(shown(capsys, *RUN))
    assert f"run.id={other.path.name}" in command(shown(capsys, *RUN, "launch.nodes=2"))
    new = command(shown(capsys, *RUN, "resume=never"))
    assert f"run.id={run.path.name}" not in new and "resume=auto" in new[new.index("resume=never") :]
    assert "run.id=mine" in command(shown(capsys, *RUN, "run.id=mine"))
    (run.path / "result.json").write_text('{"steps": 750}')
    assert "finished, at step 750" in shown(capsys, *RUN, f"run.id={run.path.name}")


def test_a_dry_run_needs_neither_slurm_nor_torch(here: Path) -> None:
    code = "import sys; from gpt2_lightning.__main__ import main; s = main(sys.argv[1:]); sys.exit('torch' in sys.modules or s)"
    done = subprocess.run(
        [sys.executable, "-c", code, *RUN, "dry_run=true"], env={**os.environ, "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("#!/bin/bash\n"), done.stderr


Sbatch = Callable[..., None]


@pytest.fixture
def sbatch(here: Path, monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    """An sbatch that notes what it is given, and answers."""

    def answer(text: str = "Submitted batch job 77", errors: str = "", status: int = 0) -> None:
        (here / "bin").mkdir()
        note = f"pathlib.Path({str(here / 'given')!r}).write_text(json.dumps([sys.argv[1:-1], dict(os.environ)]))"
        code = f"import json, os, pathlib, sys\n{note}"
        said = f"print({text!r})\nprint({errors!r}, file=sys.stderr)\nsys.exit({status})"
        (here / "bin/sbatch").write_text(f"#!{sys.executable}\n{code}\n{said}\n")
        (here / "bin/sbatch").chmod(0o755)

    monkeypatch.setenv("PATH", f"{here / 'bin'}:/usr/bin")
    monkeypatch.delenv("GPT2_LIGHTNING_STORAGE", raising=False)
    return answer


def test_a_submitted_run_says_its_number_and_folder(here: Path, sbatch: Sbatch, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch()
    assert main([*RUN, "launch.nodes=2"]) == 0
    said = capsys.readouterr().out
    script = (here / "outputs/slurm/77_submission.sh").read_text()
    (name,) = [word.removeprefix("run.id=") for word in command(script) if word.startswith("run.id=")]
    assert "submitted job 77, 2 nodes with 1 rank each\n" in said and f"outputs/runs/quickstart/{name}\n" in said
    assert json.loads((here / "given").read_text())[0] == ["--export=ALL"], "SBATCH_EXPORT must not win"
    assert [path.name for path in (here / "outputs").rglob("*")] == ["slurm", "77_submission.sh"]


def test_a_password_is_handed_on_and_written_nowhere(
    here: Path, sbatch: Sbatch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch()
    monkeypatch.setattr("gpt2_lightning.slurm.begin", lambda plan: plan)
    monkeypatch.setenv("GPT2_LIGHTNING_STORAGE", "postgresql://another")
    assert main([*STUDY, "sweep.agents=3", f"sweep.storage={URL}"]) == 0
    said = capsys.readouterr()
    assert "submitted job 77, 3 agents\n" in said.out and "outputs/sweeps/lr\n" in said.out and "77_0.log" in said.out
    assert json.loads((here / "given").read_text())[1]["GPT2_LIGHTNING_STORAGE"] == URL
    script = (here / "outputs/slurm/77_submission.sh").read_text()
    assert SECRET not in said.out + said.err + script
    assert "sweep.storage=journal" in command(script), "the job takes the environment's, whatever a file says"
    done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode != 0 and "GPT2_LIGHTNING_STORAGE: the storage is not in the environment" in done.stderr


def test_slurms_own_no_is_one_line(here: Path, sbatch: Sbatch, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch("", "sbatch: error: invalid partition specified: a\nsbatch: error: Batch job submission failed: Invalid name", 1)
    assert main([*RUN, "launch.partition=a"]) == 7
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "the job is refused: invalid partition specified: a; Batch job submission failed" in said.err
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("words", [RUN, STUDY])
def test_without_slurm_nothing_is_begun(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([*words]) == 7
    assert "there is no sbatch on this machine. Start the command where jobs are submitted" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_an_agents_threads_are_those_of_its_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    trainer = TrainerConfig(accelerator="cpu")
    assert [slot.threads for slot in make_slots(SweepConfig(slots=4), trainer)] == [16] * 4
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert [slot.threads for slot in make_slots(SweepConfig(slots=4), trainer)] == [2] * 4
    assert [slot.threads for slot in make_slots(SweepConfig(), trainer)] == [8]


def test_a_trial_in_an_allocation_is_a_world_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS", "RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("GPT2_LIGHTNING_STORAGE", URL)
    code = "import os; print(*os.environ)"
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", code))
    child = pool.Child([], pool.Slot(0, (), 1), here / "log")
    child.process.wait()
    names = (here / "log").read_text().split()
    assert "PATH" in names and not [n for n in names if n.startswith("SLURM") or n in ("RANK", "MASTER_ADDR", VARIABLE)], names


def test_options_are_read_whole() -> None:
    with pytest.raises(ConfigError, match="longer than launch.signal_seconds = 900"):
        SlurmLaunch(time="0:15:00", signal_seconds=900)


def test_help_knows_of_it(process: Command) -> None:
    assert "launch=slurm" in process("--help").stdout


def test_weights_to_start_from_are_looked_for_before_a_run_is_submitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+experiment=quickstart", "launch=slurm", "dry_run=true", "init=weights"]) == 4
    assert "weights to start from (init = weights): is not on disk" in capsys.readouterr().err
    assert list(here.iterdir()) == []
