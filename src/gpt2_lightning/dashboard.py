"""What people look at: numbers in; ``metrics.jsonl``, TensorBoard's event files and a line on the terminal out.

One number: every ``log_every``-th step pays for the log, the others for a comparison. Choice not taken: Lightning's loggers
and progress bar, which cost 2 to 3 ms a step whether or not the step is logged.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from gpt2_lightning.config import RunConfig
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.errors import OutputError
from gpt2_lightning.generation.measures import choose_rows, measure_generation
from gpt2_lightning.generation.text import continue_texts
from gpt2_lightning.metrics import device_peak_flops, flops_per_token
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.settings.generate import GenerateConfig

__all__ = ["Dashboard", "Progress", "RunLog"]


class RunLog:
    """The files of one run; ``write`` appends one object a line, flushed, and the same numbers for TensorBoard.

    A run that goes on at ``step`` keeps the first ``size`` bytes of its lines; TensorBoard drops the step's events and those
    after it, and is given the step's again.
    """

    def __init__(self, folder: Path, step: int = 0, size: int = 0) -> None:
        path = folder / "metrics.jsonl"
        before = path.exists()
        kept = path.read_bytes()[:size] if before else b""
        kept = kept[: kept.rfind(b"\n") + 1]
        self.file = path.open("ab")
        self.file.truncate(len(kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step if before else None)
        for line in kept.splitlines()[-2:]:  # of training and of validation
            if (row := json.loads(line))["step"] == step:
                self.show({name: value for name, value in row.items() if name not in ("step", "tokens")}, step)

    def write(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """One line of metrics at ``step`` optimizer steps and ``tokens`` trained tokens; raises OutputError."""
        try:
            self.file.write(json.dumps({"step": step, "tokens": tokens, **metrics}).encode() + b"\n")
            self.file.flush()
            self.show(metrics, step)
        except OSError as error:
            raise self.full(error) from error

    def show(self, metrics: dict[str, float], step: int) -> None:
        """One step's numbers for TensorBoard."""
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def sync(self) -> int:
        """Have all lines on the disk; returns their size in bytes. Raises OutputError."""
        try:
            self.board.flush()
            os.fsync(self.file.fileno())
            return self.file.tell()
        except OSError as error:
            raise self.full(error) from error

    def full(self, error: OSError) -> OutputError:
        """The error for a disk that does not take the log."""
        rule = f"cannot be written: {error.strerror}"
        return OutputError("log", key="file", value=str(self.file.name), rule=rule, remedy="The checkpoints so far stand")

    def write_text(self, name: str, text: str, step: int) -> None:
        """Text for TensorBoard, shown as it is."""
        self.board.add_text(name, f"<pre>{text.replace('&', '&amp;').replace('<', '&lt;')}</pre>", step)

    def close(self) -> None:
        """Flush and close everything."""
        self.file.close()
        self.board.close()


class Progress:
    """One line: step, loss, speed, time left. Rewritten in place on a terminal, a plain line each elsewhere."""

    def __init__(self, max_steps: int, stream: TextIO | None = None) -> None:
        self.max_steps, self.stream = max_steps, stream or sys.stderr
        self.in_place = self.stream.isatty()

    def show(self, step: int, metrics: dict[str, float], seconds_left: float) -> None:
        """The line of one step."""
        text = f"step {step}/{self.max_steps}  train {metrics['train/cross_entropy']:.3f}"
        text += f"  {metrics['speed/tokens_per_second']:,.0f} tokens/s  {duration(seconds_left)} left"
        self.stream.write(f"\r{text}\x1b[K" if self.in_place else f"{text}\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(f"\r\x1b[K{text}\n" if self.in_place else f"{text}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the larger two."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{s} s"


class Dashboard(Callback):
    """Collects the numbers of a run as it trains. Rank 0 writes; the other ranks take part in the means.

    ``seconds_per_step`` is training without validation; ``tokens_per_step`` the global batch in tokens.
    """

    def __init__(self, folder: Path, config: RunConfig, data: StreamDataModule) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.name = f"{folder.parent.name}/{folder.name}"
        self.max_steps, self.log_every = config.trainer.max_steps, config.trainer.log_every
        rows = config.data.batch_size * config.trainer.accumulate * config.trainer.devices
        self.tokens_per_step = rows * config.model.block_size
        self.profiler = profile_into(folder) if config.trainer.profile else None
        self.rows = choose_rows([inputs for inputs, _ in data.validation], config.samples.measure, config.seed)
        self.run_log: RunLog | None = None
        self.progress: Progress | None = None
        self.validation: dict[str, float] = {}
        self.logged_step = self.size = 0
        self.started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What the next lines depend on."""
        size = self.run_log.sync() if self.run_log else 0
        lines = {"folder": self.name, "size": size}
        return {"logged_step": self.logged_step, "validation": self.validation, "seconds": self.seconds(), "lines": lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the lines of a run; a checkpoint of another run leaves its lines there."""
        self.logged_step, self.validation = state_dict["logged_step"], state_dict["validation"]
        self.started -= state_dict["seconds"]
        lines = state_dict["lines"]
        self.size = lines["size"] if lines["folder"] == self.name else 0

    def seconds(self) -> float:
        """What the run has taken, what came before a resume included."""
        return time.perf_counter() - self.started

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Rank 0 opens the files; the clocks start."""
        if trainer.is_global_zero:
            self.run_log = RunLog(self.folder, trainer.global_step, self.size)
            self.progress = Progress(self.max_steps)
        self.mark, self.mark_step = time.perf_counter(), trainer.global_step
        if self.profiler:
            self.profiler.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ten batches are traced."""
        if self.profiler:
            self.profiler.step()

    def is_last(self, trainer: Trainer, step: int) -> bool:
        """Whether the run ends with this step."""
        return step == self.max_steps or (self.data.finite and self.all_ended(trainer))

    def log_step(self, trainer: Trainer, module: GPT2Module, step: int, last: bool) -> None:
        """At every ``log_every``-th step and the last, write a line."""
        if (step % self.log_every == 0 or last) and step > self.logged_step:
            self.write_training(trainer, module, step)

    def all_ended(self, trainer: Trainer) -> bool:
        """Whether every rank has read its corpora to their end."""
        assert self.data.loader
        return trainer.strategy.reduce_boolean_decision(self.data.loader.ended, all=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The trace is written when the profiler stops."""
        if self.profiler:
            self.profiler.stop()

    def write_training(self, trainer: Trainer, module: GPT2Module, step: int) -> None:
        """The metrics since the last line."""
        metrics = module.training_metrics()
        metrics |= self.speed(trainer, module, step)
        self.logged_step = step
        if self.run_log:
            self.run_log.write(step, step * self.tokens_per_step, metrics)
        if self.progress:
            self.progress.show(step, metrics, (self.max_steps - step) * self.seconds_per_step)

    def speed(self, trainer: Trainer, module: GPT2Module, step: int) -> dict[str, float]:
        """How fast the steps since the last line were, and what they held."""
        now = time.perf_counter()
        elapsed, steps = now - self.mark, step - self.mark_step
        self.mark, self.mark_step = now, step
        self.seconds_per_step = elapsed / steps
        tokens_per_second = steps * self.tokens_per_step / elapsed
        speed = {"speed/tokens_per_second": tokens_per_second, "speed/peak_memory": peak_memory(module.device)}
        if self.data.loader:
            speed["speed/data_wait"] = self.data.loader.waited_seconds / elapsed
            self.data.loader.waited_seconds = 0.0
            speed |= self.augmented()
        peak = device_peak_flops(torch.cuda.get_device_name(module.device)) if module.device.type == "cuda" else None
        if peak:
            rate = tokens_per_second * flops_per_token(module.config.model, module.n_parameters)
            speed["speed/mfu"] = rate / (peak * trainer.world_size)
        return speed

    def augmented(self) -> dict[str, float]:
        """The share of the documents begun since the last line that each augmentation was applied to, on this rank."""
        assert self.data.loader
        counts = self.data.loader.counts
        names = [name for name in counts if name.startswith("augment/")]
        shares = {f"{name}/share": counts[name] / max(1, counts["documents"]) for name in names}
        counts.clear()
        return shares

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock of training stands still: for validations and checkpoints."""
        began = time.perf_counter()
        yield
        self.mark += time.perf_counter() - began

    def log_validation(self, step: int, module: GPT2Module) -> None:
        """Write the validation's metrics."""
        metrics = module.validation
        self.validation = dict(metrics)
        if self.run_log:
            self.run_log.write(step, step * self.tokens_per_step, metrics | self.generated(module))
            if self.config.samples.at_validation:
                self.run_log.write_text("samples", self.samples(module), step)
        if self.progress:
            values = f"{metrics['val/cross_entropy']:.4f} nats, {metrics['val/bits_per_byte']:.4f} bits per byte"
            self.progress.note(f"step {step}: validation {values}")

    def generated(self, module: GPT2Module) -> dict[str, float]:
        """The measures of generated text, where they are asked for."""
        if not len(self.rows):
            return {}
        length, seed = self.config.samples.max_new_tokens, self.config.seed
        return measure_generation(module.decoder, self.rows, self.config.sampler, length, seed)

    def samples(self, module: GPT2Module) -> str:
        """The configured prompts and their continuations."""
        asked = GenerateConfig(max_new_tokens=self.config.samples.max_new_tokens, seed=self.config.seed)
        prompts = self.config.samples.prompts if asked.max_new_tokens else []
        found = continue_texts(module.decoder, self.data.tokenizer, prompts, asked, self.config.sampler)
        return "\n\n".join(one.prompt + one.text for (one,) in found) + "\n"

    def finish(self, module: GPT2Module) -> str:
        """Write samples.txt, close the files, and return the samples."""
        if not self.run_log:
            return ""
        text = self.samples(module)
        if self.config.samples.max_new_tokens:
            (self.folder / "samples.txt").write_text(text, encoding="utf-8")
        self.run_log.write_text("samples", text, self.logged_step)
        self.run_log.close()
        return text


def profile_into(folder: Path) -> Any:
    """A profiler that traces ten steps after ten of warm-up, for TensorBoard and for chrome://tracing."""
    schedule = torch.profiler.schedule(wait=8, warmup=2, active=10, repeat=1)
    handler = torch.profiler.tensorboard_trace_handler(str(folder / "tensorboard"))
    return torch.profiler.profile(schedule=schedule, on_trace_ready=handler)


def peak_memory(device: torch.device) -> float:
    """The most bytes held so far: of the device's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
