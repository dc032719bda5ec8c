"""The keeper: what happens between two optimizer steps, in its order: numbers, log, signals, validation, checkpoint.

In: a trainer at a step boundary. Out: a run that can be killed at any instant and goes on bit for bit where its newest
checkpoint was: model, optimizer, counters, every rank's random states and sums, the stream's place behind the batch used last.
One number: 0 batches are trained on between a checkpoint and its random states: they are put back right before the first one.
Choice not taken: Lightning's own resuming. It saves no random state, skips a batch, forgets a validation that was due, and
knows nothing of rewinds; of its counters only the number of steps is taken.
"""

import hashlib
import json
import platform
import random
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

import gpt2_lightning
from gpt2_lightning.checkpoint import checkpoints, prune_checkpoints
from gpt2_lightning.checkpoint_io import Folders, Ranks
from gpt2_lightning.config import RunConfig
from gpt2_lightning.dashboard import Dashboard
from gpt2_lightning.errors import NumbersError
from gpt2_lightning.folder import RunFolder, write_whole
from gpt2_lightning.guard import Verdict
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.signals import Interrupted, Signals, requeue

__all__ = ["Keeper", "Rewind", "find_rewind"]

MOST_SKIPPED = 25  # held steps in a row, and rewinds to one checkpoint, before a run is stopped
REWINDS = "rewinds.jsonl"


class Rewind(Exception):
    """The run is to be started again from its newest checkpoint, behind the batches that led here; the log says which."""


class Keeper(Callback):
    """Keeps ``run``, None on other ranks, in ``folder``; ``base`` names the newest checkpoint, empty while there is none.

    ``best`` is the best validation, ``skipped`` counts held steps.
    """

    def __init__(
        self, config: RunConfig, run: RunFolder | None, folder: Path, dashboard: Dashboard, signals: Signals, base: str = ""
    ) -> None:
        self.config, self.run, self.folder, self.dashboard, self.signals = config, run, folder, dashboard, signals
        self.base = base
        self.best: dict[str, float] = {}
        self.best_step = self.waited = self.step = self.skipped = self.streak = self.saved_step = 0
        self.pending = self.ended = False
        self.resumed: dict[str, Any] | None = None
        self.random: dict[str, Any] | None = None
        self.group: Any = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Whom to ask for state; ranks agree on the CPU, so that no device is waited for."""
        assert isinstance(module, GPT2Module)
        self.trainer, self.module = trainer, module
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")
        if module.sharded:
            assert isinstance(trainer.strategy.checkpoint_io, Folders)
            trainer.strategy.checkpoint_io.team = Ranks(self.group)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Lightning is about to install handlers of its own, which do more than a handler may."""
        self.signals.block()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the signals back, put everything in its place, and make up for the validation that a signal cut short."""
        self.signals.armed = True
        self.signals.install()
        self.step = self.saved_step = trainer.global_step
        if self.resumed is not None:
            self.put_back(self.resumed)
        if self.resumed is not None and (self.pending or self.is_over()):
            self.end_step(last=self.is_over(), validate=self.pending)

    def is_over(self) -> bool:
        """Whether the checkpoint that was loaded is that of the last step."""
        patience = self.config.trainer.patience
        return self.ended or self.step >= self.config.trainer.max_steps or (patience is not None and self.waited >= patience)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The last moment before a resumed run draws at random."""
        if self.random is not None:
            set_random_states(self.random, trainer.strategy.root_device)
            self.random = None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Nothing inside of a step; the order of the first line at its end."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        last = self.dashboard.is_last(trainer, self.step)
        validate = last or self.step % self.config.trainer.val_every == 0
        every = self.config.checkpoint.every
        needed = validate or self.step % self.config.trainer.log_every == 0 or (every is not None and self.step % every == 0)
        asked = self.look(flush=needed)
        self.dashboard.log_step(trainer, self.module, self.step, last)
        self.ended = last and self.step < self.config.trainer.max_steps
        if asked:
            self.leave(validate)
        self.end_step(last, validate)

    def end_step(self, last: bool, validate: bool) -> None:
        """Validate where it is due, save where it is due, and stop where it is time."""
        better = False
        if validate:
            if not self.validate():
                self.leave(pending=True)
            better = self.compare()
        every = self.config.checkpoint.every
        if last or better or (validate if every is None else self.step % every == 0):
            self.save(pending=False)
        patience = self.config.trainer.patience
        self.trainer.should_stop = last or (patience is not None and self.waited >= patience)

    def look(self, flush: bool) -> bool:
        """Go through the verdicts that are due; returns whether a rank has a signal. Raises NumbersError or Rewind."""
        asked = False
        trainer = self.config.trainer
        for verdict in self.module.guard.verdicts(flush):
            asked = asked or verdict.asked > 0
            policy = trainer.on_nonfinite if verdict.bad else trainer.on_spike if verdict.spike else "ignore"
            self.streak = self.streak + 1 if policy == "skip" else 0
            self.skipped += policy == "skip"
            if policy == "stop" or self.streak > MOST_SKIPPED:
                raise self.fault(verdict)
            if policy == "rewind":
                self.rewind(verdict)
            elif policy == "skip" and self.dashboard.progress:
                self.dashboard.progress.note(f"step {verdict.step}: skipped, {described(verdict)}")
        return asked

    def fault(self, verdict: Verdict) -> NumbersError:
        """The error for a step that may not be taken; the weights are those of the step before."""
        held = f" after {MOST_SKIPPED} steps in a row that were" if self.streak > MOST_SKIPPED else ""
        what = "is not finite" if verdict.bad else "is a spike"
        batch = verdict.step + self.module_data.skipped
        newest = checkpoints(self.folder / "checkpoints")
        stands = f"the checkpoint '{newest[0].name}' stands" if newest else "there is no checkpoint yet"
        rule = f"{what} at step {verdict.step}, batch {batch} of the stream{held}; gradient norm {verdict.norm:g}; {stands}"
        remedy = "Lower optimizer.lr, set trainer.clip, or set trainer.on_nonfinite to skip or rewind"
        return NumbersError("loss or gradient", key="train/loss", value=verdict.loss, rule=rule, remedy=remedy)

    @property
    def module_data(self) -> Any:
        """The stream."""
        return self.dashboard.data

    def rewind(self, verdict: Verdict) -> None:
        """Note which batches are left out, and ask for a new start; raises Rewind, or NumbersError when it does not help."""
        data, base, stood = self.module_data, self.base, self.saved_step
        places = data.places(verdict.step)
        if sum(entry["to"] == base for entry in read_rewinds(self.folder)) >= MOST_SKIPPED:
            raise self.fault(verdict)
        entry = {"to": base, "step": stood, "from": verdict.step, "skipped": verdict.step + data.skipped - stood}
        entry |= {"batches": [stood + data.skipped + 1, verdict.step + data.skipped], "why": described(verdict)}
        if self.trainer.is_global_zero:
            before = read_rewinds(self.folder)
            lines = [json.dumps(e) for e in [*before, entry | {"places": places.tolist()}]]
            write_whole(self.folder / REWINDS, "\n".join(lines) + "\n")
        raise Rewind(f"step {verdict.step}: {described(verdict)}; back to step {stood}")

    def leave(self, pending: bool) -> None:
        """Save, and raise Interrupted on every rank; ``pending``: a validation is due at this step."""
        number = self.most(self.signals.number)
        if self.config.checkpoint.save:
            self.save(pending)
            rule = f"the checkpoint of step {self.step} is saved, the same command goes on from it"
        else:
            rule = f"at step {self.step}; nothing is saved, for checkpoint.save=false"
        if number not in (2, 15) and self.trainer.is_global_zero:
            rule += f"; {requeue()}"
        raise Interrupted(number, rule)

    def most(self, number: int) -> int:
        """The highest of all ranks' numbers."""
        if self.group is None:
            return number
        told = torch.tensor(number)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        return int(told)

    def validate(self) -> bool:
        """The validation metrics into ``module.validation``; False where a signal came between two batches."""
        strategy, precision, module = self.trainer.strategy, self.trainer.precision_plugin, self.module
        module.eval()
        module.on_validation_epoch_start()
        try:
            with self.dashboard.paused(), torch.no_grad():
                for corpus, loader in enumerate(self.module_data.val_dataloader()):
                    batches = iter(loader)
                    for n in range(self.most(len(loader))):
                        if self.most(self.signals.number):
                            return False
                        batch = next(batches, None)
                        with precision.val_step_context():
                            if batch is not None:
                                last = strategy.batch_to_device(batch)
                                module.validation_step(last, n, corpus)
                            elif module.sharded:  # the others need this rank's part
                                module.decoder.hidden(last.inputs)
        finally:
            module.train()
        module.on_validation_epoch_end()
        with self.dashboard.paused():
            self.dashboard.log_validation(self.step, module)
        return True

    def compare(self) -> bool:
        """Whether this validation is the best so far; raises NumbersError when it is not finite."""
        value = self.module.validation["val/cross_entropy"]
        if not value < float("inf"):
            rule = f"is not finite at step {self.step}"
            raise NumbersError("validation", key="val/cross_entropy", value=value, rule=rule)
        better = not self.best or value < self.best["val/cross_entropy"]
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best, self.best_step = dict(self.module.validation), self.step
        return better

    def save(self, pending: bool) -> None:
        """One checkpoint of this step, on all ranks together; then the old ones go."""
        if not self.config.checkpoint.save or self.saved_step == self.step:
            return
        self.pending = pending
        with self.dashboard.paused():
            if self.run is not None:
                self.run.lock.require()
            self.trainer.save_checkpoint(self.folder / "checkpoints", weights_only=False)
            self.saved_step = self.step
            self.base = checkpoints(self.folder / "checkpoints")[0].name
            if self.trainer.is_global_zero:
                with suppress(OSError):  # the next save tries again
                    prune_checkpoints(self.folder / "checkpoints", self.config.checkpoint.keep)

    def state_dict(self) -> dict[str, Any]:
        """Best, counts, and what each rank has of its own."""
        sums = {name: value.cpu() for name, value in self.module.sums_of_steps.items()}
        counts = dict(self.module_data.loader.counts)
        own = {"random": random_states(self.trainer.strategy.root_device), "sums": sums, "counts": counts}
        ranks: list[Any] = [own]
        if self.group is not None:
            ranks = [None] * self.trainer.world_size
            dist.all_gather_object(ranks, own, group=self.group)
        names = ("best", "best_step", "waited", "skipped", "streak", "pending", "ended")
        return {name: getattr(self, name) for name in names} | {"guard": self.module.guard.state_dict(), "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what needs no device; the rest is put back when training starts."""
        self.resumed = state_dict
        for name in ("best", "best_step", "waited", "skipped", "streak", "pending", "ended"):
            setattr(self, name, state_dict[name])

    def put_back(self, state: dict[str, Any]) -> None:
        """This rank's sums and random states; with another number of ranks the sums are shared out anew."""
        module, ranks, rank = self.module, state["ranks"], self.trainer.global_rank
        module.guard.load_state_dict(state["guard"])
        same = len(ranks) == self.trainer.world_size
        own = ranks[rank] if same else ranks[0] | {"sums": shared_sums([r["sums"] for r in ranks], rank)}
        for name, value in own["sums"].items():
            module.sums_of_steps[name].copy_(value)
        self.module_data.loader.counts = Counter(own["counts"])
        self.random = own["random"] if rank < len(ranks) else None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What the manifest says, and the configuration, as plain data."""
        stream, config = checkpoint["StreamDataModule"], asdict(self.config)
        checkpoint["facts"] = {
            "format": 1,
            "step": self.step,
            "tokens": self.step * self.dashboard.tokens_per_step,
            "best_step": self.best_step or self.step,
            "pending_validation": self.pending,
            "fingerprints": {
                "config": digest(json.dumps(config).encode()),
                "data": stream["corpora"],
                "code": code_fingerprint(),
            },
            "versions": versions(),
            "config": config,
        }


def described(verdict: Verdict) -> str:
    """Loss and norm in words."""
    return f"loss {verdict.loss:g}, gradient norm {verdict.norm:g}"


def random_states(device: torch.device) -> dict[str, Any]:
    """All global random states of this process, as plain data."""
    name, keys, *rest = np.random.get_state()
    ours = (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest)
    states: dict[str, Any] = {"python": random.getstate(), "numpy": ours, "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Inverse of random_states."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def shared_sums(ranks: list[dict[str, torch.Tensor]], rank: int) -> dict[str, torch.Tensor]:
    """The sums of some ranks for one of another number: the mean over ranks of the losses, rank 0 all corpora."""
    loss = torch.stack([sums["loss"] for sums in ranks]).mean(0)
    corpora = torch.stack([sums["corpora"] for sums in ranks]).sum(0)
    return {"loss": loss, "corpora": corpora if rank == 0 else torch.zeros_like(corpora)}


def read_rewinds(folder: Path) -> list[dict[str, Any]]:
    """The log of rewinds, oldest first."""
    path = folder / REWINDS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def find_rewind(folder: Path, base: str) -> dict[str, Any] | None:
    """Where the stream goes on behind the checkpoint of that name (empty: from the start), if a rewind has moved it."""
    return next((entry for entry in reversed(read_rewinds(folder)) if entry["to"] == base), None)


def versions() -> dict[str, str]:
    """What made a checkpoint."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "lightning": lightning.__version__}


def code_fingerprint() -> str:
    """A digest of our own source, by which a change of code between two starts can be told."""
    return digest(*(path.read_bytes() for path in sorted(Path(gpt2_lightning.__file__).parent.rglob("*.py"))))


def digest(*contents: bytes) -> str:
    """A short digest of all of them."""
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]
