"""The store of checkpoints: whole or not there, whatever fails at whichever operation, and no byte changes unseen."""

import errno
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from safetensors.torch import load_file

from gpt2_lightning import checkpoint
from gpt2_lightning.checkpoint import (
    Disk,
    checkpoints,
    load_checkpoint,
    newest_verified,
    prune_checkpoints,
    save_checkpoint,
    tidy_checkpoints,
    verify_checkpoint,
)
from gpt2_lightning.checkpoint_io import Ranks
from gpt2_lightning.errors import CheckpointError, OutputError
from gpt2_lightning.trained import best_checkpoint
from tests.lab import finish, same

FAULTS = ("fails", "no space", "short write", "kill")


def content(step: int) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """State, weights and facts that differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    weights = {
        "wte.weight": torch.randn(7, 5, generator=generator),
        "h.0.bias": torch.randn(3, generator=generator).bfloat16(),
        "turned": torch.randn(4, 6, generator=generator).T,
        "scalar": torch.tensor(step),
    }
    state = {"step": step, "moments": [torch.randn(50, generator=generator)], "random": (3, (1, 2, None), 0.5)}
    return state, weights, {"step": step, "best_step": step}


def save(parent: Path, step: int, best: int | None = None) -> Path:
    state, weights, facts = content(step)
    return save_checkpoint(parent, state, weights, facts | {"best_step": step if best is None else best})


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what was saved at its step."""
    state, weights = load_checkpoint(folder)
    step = verify_checkpoint(folder)["step"]
    return same((state, weights), content(step)[:2])


def test_what_was_saved_is_loaded_bit_for_bit_and_by_others_too(tmp_path: Path) -> None:
    folder = save(tmp_path, 250)
    assert folder.name == "step-00000250"
    assert is_whole(folder)
    assert same(load_file(folder / "model.safetensors"), content(250)[1])
    assert same(torch.load(folder / "state.ckpt", weights_only=True), content(250)[0])


class FaultyDisk(Disk):
    """Counts its operations; at one of them it does ``fault``, and a write does half first."""

    def __init__(self, at: int = -1, fault: str = "", forever: bool = False) -> None:
        self.at, self.fault, self.forever, self.count = at, fault, forever, 0
        for name in ("mkdir", "create", "write", "sync", "close", "sync_folder", "rename", "remove"):
            setattr(self, name, self.watched(name, getattr(self, name)))

    def watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            self.count += 1
            due = self.count == self.at or (self.forever and self.count > self.at)
            if due and self.fault == "short write" and name == "write":
                return operation(args[0], args[1][: max(1, len(args[1]) // 2)])
            if due and self.fault in ("kill", "fails", "no space"):
                if name == "write" and self.fault != "fails":
                    operation(args[0], args[1][: len(args[1]) // 2])
                if self.fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC if self.fault == "no space" else errno.EIO, "injected")
            return operation(*args)

        return watched


def save_and_prune(parent: Path, step: int, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "disk", disk)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    save(parent, step)
    prune_checkpoints(parent, 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_operation_of_a_save_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    counting = FaultyDisk()
    for step in (1, 2):
        save(tmp_path / "count", step)
    save_and_prune(tmp_path / "count", 3, counting, monkeypatch)
    assert counting.count > 20
    print(f"{counting.count} operations x {fault}")
    for at in range(1, counting.count + 1):
        parent = tmp_path / f"at{at}"
        for step in (1, 2):
            save(parent, step)
        pid = os.fork()
        if pid == 0:
            try:
                save_and_prune(parent, 3, FaultyDisk(at, fault), monkeypatch)
                os._exit(0)
            except OSError:
                os._exit(1)
        status = finish(pid)
        newest, faults = newest_verified(parent)
        assert faults == []
        assert newest
        assert newest.name in ("step-00000002", "step-00000003", "step-00000003-1")
        assert (status == -9) == (fault == "kill")
        if status == 0:
            assert newest.name != "step-00000002"
        assert {"step-00000002"} < {folder.name for folder in checkpoints(parent)}
        assert all(is_whole(folder) for folder in checkpoints(parent))
        tidy_checkpoints(parent)
        assert all(path.name.startswith("step-") for path in parent.iterdir())
        save(parent, 4)
        assert newest_verified(parent)[0] == parent / "step-00000004"


def start_team(parent: Path, step: int, at: int = -1, fault: str = "", faulty: int = 0) -> list[int]:
    """Two ranks that save together, each some of the tensors; an operation of one of them fails. Returns their processes."""
    store = parent.with_name(f"{parent.name}-store-{step}")
    disks = [FaultyDisk(at if rank == faulty else -1, fault) for rank in (0, 1)]
    return [fork(lambda rank=rank: save_as_team(parent, step, store, rank, disks[rank])) for rank in (0, 1)]  # type: ignore[misc]


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except (OSError, RuntimeError):
            os._exit(1)
        finally:
            os._exit(99)
    return pid


def save_as_team(parent: Path, step: int, store: Path, rank: int, disk: FaultyDisk) -> None:
    checkpoint.disk, checkpoint.time.sleep = disk, lambda _: None  # type: ignore[assignment]
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    state, weights, facts = content(step)
    own = dict(list(weights.items())[rank::2])
    parts = {"shard:moments/0": state["moments"][0]} if rank else {}
    save_checkpoint(parent, state | {"moments": ["shard:moments/0"]}, own, facts, parts, Ranks(None))
    if rank == 0:
        prune_checkpoints(parent, 2)
    (parent.parent / f"operations-{rank}").write_text(str(disk.count))


def test_ranks_save_together_what_one_loads(tmp_path: Path) -> None:
    assert [finish(pid) for pid in start_team(tmp_path / "c", 3)] == [0, 0]
    (folder,) = checkpoints(tmp_path / "c")
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "state-00002-of-00002.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *files, "state.ckpt"]
    assert is_whole(folder)
    for file in files:
        good = (folder / file).read_bytes()
        (folder / file).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=file):
            verify_checkpoint(folder)
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=file):
            verify_checkpoint(folder)
        (folder / file).write_bytes(good)


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_operation_of_a_rank_leaves_a_good_checkpoint(tmp_path: Path, fault: str, faulty: int) -> None:
    assert [finish(pid) for pid in start_team(tmp_path / "count", 1)] == [0, 0]
    operations = int((tmp_path / f"operations-{faulty}").read_text())
    assert operations > 5
    for at in range(1, operations + 1):
        parent = tmp_path / f"at{at}"
        for step in (1, 2):
            save(parent, step)
        statuses = [finish(pid) for pid in start_team(parent, 3, at, fault, faulty)]
        if fault == "kill":
            assert statuses[faulty] == -9 and statuses[1 - faulty] in (0, 1)
        else:
            assert statuses == [0, 0]
        newest, faults = newest_verified(parent)
        assert faults == [] and newest
        assert newest.name in ("step-00000003", "step-00000003-1", *(["step-00000002"] if fault == "kill" else []))
        assert all(is_whole(folder) for folder in checkpoints(parent))
        tidy_checkpoints(parent)
        assert all(path.name.startswith("step-") for path in parent.iterdir())


def test_a_disk_that_stays_full_for_one_rank_is_said_by_all(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)

    def work(rank: int) -> None:
        with pytest.raises(OutputError, match=r"the ones before it stand: .*injected \[rank 1\]"):
            save_as_team(
                tmp_path / "c", 2, tmp_path / "store", rank, FaultyDisk(3 if rank else -1, "no space", forever=bool(rank))
            )

    assert [finish(pid) for pid in [fork(lambda rank=rank: work(rank)) for rank in (0, 1)]] == [0, 0]  # type: ignore[misc]
    assert newest_verified(tmp_path / "c") == (tmp_path / "c/step-00000001", [])
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]


def test_a_disk_that_stays_full_is_said_and_the_checkpoints_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with pytest.raises(OutputError, match="the ones before it stand: .*injected"):
        save_and_prune(tmp_path, 2, FaultyDisk(5, "no space", forever=True), monkeypatch)
    assert is_whole(tmp_path / "step-00000001")


@pytest.mark.parametrize("file", ["state.ckpt", "model.safetensors", "manifest.json"])
def test_a_flipped_byte_anywhere_is_noticed(tmp_path: Path, file: str) -> None:
    folder = save(tmp_path, 1)
    good = (folder / file).read_bytes()
    chance = random.Random(file)
    for place in chance.sample(range(len(good)), 50):
        flipped = bytearray(good)
        flipped[place] ^= 1 << chance.randrange(8)
        (folder / file).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=file):
            verify_checkpoint(folder)
        assert newest_verified(tmp_path)[0] is None
    for cut in (good[:-1], good + b"\0", b""):
        (folder / file).write_bytes(cut)
        with pytest.raises(CheckpointError, match=file):
            verify_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        verify_checkpoint(folder)


def test_the_newest_good_one_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003/state.ckpt").write_bytes(b"")
    (tmp_path / "step-00000002/manifest.json").unlink()
    found, faults = newest_verified(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert [fault.value for fault in faults] == [
        str(tmp_path / "step-00000003/state.ckpt"),
        str(tmp_path / "step-00000002/manifest.json"),
    ]
    checkpoint.set_damaged_aside(faults)
    assert save(tmp_path, 2).name == "step-00000002"
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == ["damaged-step-00000002", "damaged-step-00000003"]
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_pruning_spares_the_newest_and_the_best_that_each_of_them_knows(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
        save(tmp_path, step, best)
        prune_checkpoints(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000006", "step-00000005"]
    for step, best in ((7, 5), (8, 5), (9, 9)):
        save(tmp_path, step, best)
        prune_checkpoints(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000008", "step-00000005"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000009"
    (tmp_path / "step-00000009/manifest.json").unlink()
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000005"


def test_a_second_save_of_a_step_stands_beside_the_first_until_it_is_proven(tmp_path: Path) -> None:
    save(tmp_path, 1)
    second = save(tmp_path, 1)
    assert second.name == "step-00000001-1"
    assert newest_verified(tmp_path)[0] == second


class Evil:
    """A pickle that would make a folder on loading."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_what_could_be_executed_is_never_saved_nor_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    with pytest.raises((CheckpointError, OutputError)):
        save_checkpoint(here / "c", {"x": Evil()}, content(1)[1], content(1)[2])
    assert checkpoints(here / "c") == []
    folder = save(here, 1)
    torch.save({"x": Evil()}, folder / "state.ckpt")
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert not (here / "pwned").exists()
