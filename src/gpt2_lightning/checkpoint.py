"""Checkpoints: plain data in, a folder that is whole, proven and on disk, or not there, out; and back.

``checkpoints/step-00000250/`` holds ``model.safetensors`` (the weights, once), ``state.ckpt`` (all else) and ``manifest.json``,
written last, with the size and SHA-256 of both and of itself. They are made in a hidden folder beside it, flushed, read
back from the disk, loaded as they will be, and only then is the folder renamed; older ones go after that. Of a sharded model
every rank writes and proves a file of weights and one of moments, whole tensors in each, before rank 0 seals them all.
One number: 1.5 GB, a checkpoint of the 124M model with AdamW's two moments. Choices not taken: staging in TMPDIR, from where a
move to another file system is a copy, and a kill in the middle of it destroys the good file it replaces; torch's distributed
checkpoints, whose metadata is a pickle, and which say of no byte whether it is the one that was written.
"""

import hashlib
import io
import json
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial as bind
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2_lightning.errors import CheckpointError, OutputError, first_line
from gpt2_lightning.folder import sync_folder

__all__ = [
    "MANIFEST", "Team", "checkpoints", "damaged", "load_checkpoint", "load_weights", "newest_verified", "prune_checkpoints",
    "read_manifest", "remove_folder", "save_checkpoint", "set_damaged_aside", "sound", "step_of", "tidy_checkpoints",
    "verify_checkpoint",
]  # fmt: skip

MANIFEST, STATE = "manifest.json", "state.ckpt"
WEIGHTS, PARTS = "model", "state"  # safetensors: one file, or one a rank
NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
SEALED = re.compile(rb'(\{.*"sha256": ")([0-9a-f]{64})("\n\}\n)', re.DOTALL)
CHUNK = 2**22
ATTEMPTS = 3  # of a save, a second apart
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Disk:
    """Every operation that changes the disk, one method each, so that each can be made to fail."""

    def mkdir(self, path: Path) -> None:
        """Make a folder and those above it."""
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> int:
        """A descriptor of a new file."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the bytes; returns how many."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until the file is on the disk, and forget what is in memory of it."""
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        sync_folder(path)

    def rename(self, path: Path, target: Path) -> None:
        """Rename in one step."""
        path.rename(target)

    def remove(self, path: Path) -> None:
        """Remove one file or empty folder."""
        path.rmdir() if path.is_dir() else path.unlink()


disk = Disk()


class Sink(io.RawIOBase):
    """A new file on the disk; ``digest`` is over what was written, and made while it is."""

    def __init__(self, path: Path) -> None:
        self.descriptor, self.digest, self.pool = disk.create(path), hashlib.sha256(), ThreadPoolExecutor(1)

    def writable(self) -> bool:
        """For the buffer in front."""
        return True

    def write(self, data: Any) -> int:
        """Some of the bytes; the buffer in front comes back with the rest."""
        view, digest = memoryview(data).cast("B"), self.digest.copy()
        hashed = self.pool.submit(digest.update, view)
        try:
            n = disk.write(self.descriptor, view)
        finally:
            hashed.result()
        if n == len(view):
            self.digest = digest
        else:
            self.digest.update(view[:n])
        return n

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self.closed:
            super().close()
            self.pool.shutdown()
            try:
                disk.sync(self.descriptor)
            finally:
                disk.close(self.descriptor)


class Team:
    """The ranks that save one checkpoint, each its part of it; this one has all, alone."""

    rank, size = 0, 1

    def lead(self, do: Callable[[], Any]) -> Any:
        """Have rank 0 do it: its result on every rank; OSError on every rank where it failed."""
        return sound(do)

    def each(self, do: Callable[[], Any]) -> list[Any]:
        """Have every rank do it: all results on every rank; OSError on every rank where one failed."""
        return [sound(do)]


def sound(do: Callable[[], Any]) -> Any:
    """Do it; whatever is wrong with the disk or with what was read back is an OSError."""
    try:
        return do()
    except (RuntimeError, ValueError) as error:
        raise OSError(first_line(error)) from error


ALONE = Team()


def save_checkpoint(
    parent: Path,
    state: dict[str, Any],
    weights: dict[str, Tensor],
    facts: dict[str, Any],
    parts: dict[str, Tensor] | None = None,
    team: Team = ALONE,
) -> Path:
    """Save in ``parent`` and return the folder; ``facts``, plain JSON with ``step``, go into the manifest.

    ``weights`` and ``parts`` are those of this rank; the name of a part stands in ``state`` for it, which rank 0 saves. Raises
    OutputError on every rank, with the checkpoints before it untouched, when it has failed three times.
    """
    for attempt in range(ATTEMPTS):
        try:
            return try_to_save(parent, state, weights, facts, parts or {}, team)
        except OSError as error:
            failure = error
            if team.rank == 0:
                with suppress(OSError):  # else the next start tidies
                    tidy_checkpoints(parent)
            time.sleep(attempt)
    rule = f"cannot be saved, the ones before it stand: {first_line(failure)}"
    raise OutputError("checkpoint", key="folder", value=str(parent), rule=rule) from failure


def try_to_save(
    parent: Path, state: dict[str, Any], weights: dict[str, Tensor], facts: dict[str, Any], parts: dict[str, Tensor], team: Team
) -> Path:
    """Once: every rank writes, flushes and reads back its own, then rank 0 all else, and renames."""
    name = team.lead(lambda: begin_folder(parent, facts["step"]))
    partial = parent / f".{name}"
    written = team.each(lambda: write_tensors(partial, weights, parts, team))
    files = {name: entry for each in written for name, entry in each.items()}
    team.lead(lambda: finish_folder(partial, parent / name, state, facts, files))
    return parent / name


def begin_folder(parent: Path, step: int) -> str:
    """Make the hidden folder; returns the name it will have."""
    name = free_name(parent, step)
    disk.mkdir(parent / f".{name}")
    return name


def write_tensors(partial: Path, weights: dict[str, Tensor], parts: dict[str, Tensor], team: Team) -> dict[str, Any]:
    """This rank's files of tensors, proven; returns their sizes and digests."""
    own = f"-{team.rank + 1:05d}-of-{team.size:05d}.safetensors" if team.size > 1 else ".safetensors"
    tensors = {f"{WEIGHTS}{own}": weights} | ({f"{PARTS}{own}": parts} if parts else {})
    files = {name: write_file(partial / name, bind(write_safetensors, tensors=held)) for name, held in tensors.items()}
    verify_files(partial, files)
    return files


def finish_folder(partial: Path, folder: Path, state: dict[str, Any], facts: dict[str, Any], files: dict[str, Any]) -> None:
    """All but the tensors, the seal on everything, and the name."""
    own = {STATE: write_file(partial / STATE, lambda file: torch.save(state, file))}
    manifest = seal({**facts, "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": files | own})
    write_file(partial / MANIFEST, lambda file: file.write(manifest))
    disk.sync_folder(partial)
    read_manifest(partial)
    verify_files(partial, own)
    load_checkpoint(partial)
    disk.rename(partial, folder)
    disk.sync_folder(folder.parent)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.split("-")[1])


def free_name(parent: Path, step: int) -> str:
    """The folder of a step; one that is there stays until the new one is proven."""
    name, n = f"step-{step:08d}", 0
    while (parent / name).exists():
        n += 1
        name = f"step-{step:08d}-{n}"
    return name


def write_file(path: Path, write: Callable[[Any], Any]) -> dict[str, Any]:
    """Write one file and flush it to the disk; returns its size and digest."""
    sink = Sink(path)
    with io.BufferedWriter(sink, CHUNK) as file:
        write(file)
    return {"bytes": path.stat().st_size, "sha256": sink.digest.hexdigest()}


def write_safetensors(file: Any, tensors: dict[str, Tensor]) -> None:
    """The safetensors format, a tensor at a time: the header's length, the header, and the bytes end to end."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def seal(manifest: dict[str, Any]) -> bytes:
    """The manifest's text, with the digest of all the rest of it as its last value."""
    text = json.dumps({**manifest, "sha256": "0" * 64}, indent=1).encode() + b"\n"
    found = SEALED.fullmatch(text)
    assert found
    before, _, after = found.groups()
    return before + hashlib.sha256(before + after).hexdigest().encode() + after


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raises CheckpointError when it is not what was written."""
    try:
        found = SEALED.fullmatch((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise damaged(folder / MANIFEST, f"is damaged or no checkpoint of ours: {error.strerror}") from error
    if not found or hashlib.sha256(found[1] + found[3]).hexdigest().encode() != found[2]:
        raise damaged(folder / MANIFEST, "is damaged: it is not what was written")
    return json.loads(found[0])


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Read every byte and compare; returns the manifest, raises CheckpointError that names the file."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest["files"])
    return manifest


def verify_files(folder: Path, files: dict[str, Any]) -> None:
    """Compare some files with what was noted when they were written; raises CheckpointError that names the file."""
    for name, written in files.items():
        path, digest, size = folder / name, hashlib.sha256(), 0
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise damaged(path, f"cannot be read: {error.strerror}") from error
        if size != written["bytes"]:
            raise damaged(path, f"is damaged: it has {size} bytes, {written['bytes']} were written")
        if digest.hexdigest() != written["sha256"]:
            raise damaged(path, "is damaged: its SHA-256 is not that of what was written")


def damaged(path: Path, rule: str) -> CheckpointError:
    """The error for one file."""
    return CheckpointError("checkpoint", key="file", value=str(path), rule=rule)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and weights, never executing anything of them, in memory only as they are used; raises CheckpointError."""
    weights, parts = load_weights(folder), load_tensors(folder, PARTS)
    with reading(folder / STATE):
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    return filled(state, parts) if parts else state, weights


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The decoder's weights; raises CheckpointError."""
    return load_tensors(folder, WEIGHTS)


def load_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one file, or of those that ranks have written, by the manifest's names; raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for name in read_manifest(folder)["files"]:
        if name.startswith(stem) and name.endswith(".safetensors"):
            with reading(folder / name):
                tensors |= load_file(folder / name)
    return tensors


def filled(tree: Any, parts: dict[str, Tensor]) -> Any:
    """The same nested dicts and lists with the parts in place of their names."""
    if isinstance(tree, dict):
        return {key: filled(value, parts) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(filled(value, parts) for value in tree)
    return parts.get(tree, tree) if isinstance(tree, str) else tree


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise CheckpointError where a file cannot be read as what it should be."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(path, "does not exist") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise damaged(path, f"is damaged or no checkpoint of ours: {first_line(error)}") from error


def checkpoints(parent: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first, whether they are good or not."""
    try:
        found = [(match, path) for path in parent.iterdir() if (match := NAME.fullmatch(path.name))]
    except OSError:
        return []
    return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2] or 0)), reverse=True)]


def newest_verified(parent: Path) -> tuple[Path | None, list[CheckpointError]]:
    """The newest checkpoint of which every byte is as written, and what is wrong with those after it."""
    faults: list[CheckpointError] = []
    for folder in checkpoints(parent):
        try:
            verify_checkpoint(folder)
            return folder, faults
        except CheckpointError as error:
            faults.append(error)
    return None, faults


def set_damaged_aside(faults: list[CheckpointError]) -> None:
    """Take damaged checkpoints out of the sequence, which goes on without them."""
    for fault in faults:
        folder = Path(fault.value).parent
        disk.rename(folder, free_place(folder))


def free_place(folder: Path) -> Path:
    """A name for a damaged checkpoint."""
    names = (folder.with_name(f"damaged-{folder.name}{n}") for n in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in names if not path.exists())


def tidy_checkpoints(parent: Path) -> None:
    """Remove what killed saves and removals have left."""
    for path in parent.glob(".step-*"):
        remove_folder(path)


def prune_checkpoints(parent: Path, keep: int) -> None:
    """Keep the good ones of the newest ``keep`` steps and the best each of them knows of; remove the rest, by name first.

    Only manifests are read here: the newest was verified a moment ago, the others when they were saved.
    """
    tidy_checkpoints(parent)
    kept: dict[int, Path] = {}
    best: set[int] = set()
    for folder in checkpoints(parent):
        with suppress(CheckpointError):
            manifest = read_manifest(folder)
            if len(kept) < keep and manifest["step"] not in kept:
                kept[manifest["step"]] = folder
                best.add(manifest["best_step"])
    for folder in checkpoints(parent):
        if folder not in kept.values() and step_of(folder) not in best - kept.keys():
            disk.rename(folder, parent / f".{folder.name}")
            remove_folder(parent / f".{folder.name}")
    for folder in parent.glob("damaged-*") if len(kept) == keep else []:
        remove_folder(folder)


def remove_folder(path: Path) -> None:
    """Remove a folder of files."""
    for file in path.iterdir():
        disk.remove(file)
    disk.remove(path)
