"""Who has started the ranks, as the environment tells it."""

import pytest

from gpt2_lightning.config import compose_config
from gpt2_lightning.errors import ConfigError, MachineError
from gpt2_lightning.settings.trainer import TrainerConfig
from gpt2_lightning.world import find_world, first_node, is_other_rank, may_speak

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "a", "MASTER_PORT": "29500"}  # fmt: skip
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost,b[3-5]", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1"}  # fmt: skip


def set_up(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("trainer", [TrainerConfig(devices=2, nodes=2), TrainerConfig(devices=None, nodes=None)])
@pytest.mark.parametrize(("env", "rank"), [(TORCHRUN, 3), (SRUN, 2)])
def test_ranks_are_those_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], rank: int, trainer: TrainerConfig
) -> None:
    set_up(monkeypatch, env)
    world = find_world(trainer)
    assert world is not None and (world.rank, world.size, world.local_size, world.nodes) == (rank, 4, 2, 2)
    assert is_other_rank(trainer) and not may_speak()


@pytest.mark.parametrize(
    ("env", "trainer"),
    [
        ({}, TrainerConfig(devices=None)),
        (SRUN, TrainerConfig()),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, TrainerConfig(devices=2)),
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, TrainerConfig(devices=4)),
    ],
)
def test_slurms_variables_count_only_in_a_step_of_several_tasks_for_a_run_of_several_ranks(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], trainer: TrainerConfig
) -> None:
    set_up(monkeypatch, env)
    assert find_world(trainer) is None and not is_other_rank(trainer)


@pytest.mark.parametrize(
    ("env", "trainer", "words"),
    [
        (TORCHRUN, TrainerConfig(), "torchrun has started 4 ranks, 2 on each of 2 nodes; the run has 1 on each of 1. Set"),
        (TORCHRUN, TrainerConfig(nodes=2, devices=4), r"\(trainer.devices = 4\).* or trainer.nodes=2 trainer.devices=2"),
        (SRUN, TrainerConfig(nodes=4, devices=1), r"\(trainer.nodes = 4\): srun has started 4 ranks"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "3"}, TrainerConfig(nodes=2, devices=2), r"srun has started 3 ranks"),
        ({}, TrainerConfig(nodes=2), r"\(trainer.nodes = 2\): nobody has started ranks on other nodes. Start the same"),
    ],
)
def test_another_number_of_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], trainer: TrainerConfig, words: str
) -> None:
    set_up(monkeypatch, env)
    with pytest.raises(MachineError, match=words):
        find_world(trainer)


@pytest.mark.parametrize(("names", "first"), [("n1", "n1"), ("n[1-2,5],m3", "n1"), ("gpu-[007-009]", "gpu-007"), ("a,b", "a")])
def test_rank_0_is_on_the_first_node(names: str, first: str) -> None:
    assert first_node(names) == first


WORDS = ["model=nano", "data.batch_size=4"]
REFUSED = [
    (["trainer.batch_tokens=1000"], r"\(trainer.batch_tokens = 1000\): is no multiple of 256.*=768 or 1024, or another"),
    (["trainer.batch_tokens=100"], r"is no multiple of 256.*trainer.batch_tokens=256, or"),
    (["trainer.batch_tokens=512", "trainer.devices=4"], "is no multiple of 1024, the tokens of a batch of 4 rows on each of 4"),
    (["trainer.batch_tokens=512", "trainer.accumulate=2"], "follows from trainer.batch_tokens"),
    (["trainer=fsdp", "trainer.precision=16-mixed"], "trainer.precision=bf16-mixed"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_torch_is_loaded(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([*WORDS, *words])


def test_accumulation_follows_from_the_tokens_of_a_step() -> None:
    trainer = compose_config([*WORDS, "trainer=ddp", "trainer.batch_tokens=2048"]).trainer
    assert [trainer.accumulation(4, 64, ranks) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]
