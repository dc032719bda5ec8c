"""What people look at: numbers in; ``metrics.jsonl``, TensorBoard's event files and a line on the terminal out.

TensorBoard shows what the lines hold under the same names, and beside it texts, histograms and the entropy of attention.
One number: every ``log_every``-th step pays for the log, the others for a comparison. Choice not taken: Lightning's loggers
and progress bar, which cost 2 to 3 ms a step whether or not the step is logged.
"""

import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.board import Layout, escaped, open_board, preformatted
from gpt2_lightning.config import RunConfig, take_storage, to_yaml
from gpt2_lightning.data.look import augmentation_examples, first_documents, marked
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import OutputError
from gpt2_lightning.folder import write_whole
from gpt2_lightning.generation.measures import choose_rows, measure_generation
from gpt2_lightning.generation.records import RecordModel
from gpt2_lightning.generation.text import Continuation, continue_texts
from gpt2_lightning.inspection import ROWS, attention_entropy, histogram, histograms
from gpt2_lightning.metrics import device_peak_flops, flops_per_token
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.report.page import duration
from gpt2_lightning.settings.generate import GenerateConfig

__all__ = ["Dashboard", "Progress", "RunLog"]

LENGTHS, CHARACTERS = 256, 2**18  # documents of each corpus whose lengths are shown, and of how much text at most
TEXT = ("perplexity", "distinct_1", "distinct_2", "distinct_3", "repetition", "self_bleu", "zipf", "length")
CHARTS: Layout = {  # patterns, not names, so that runs of other corpora share a chart
    "loss": {
        "cross-entropy: training and validation": ["train/cross_entropy$", "val/cross_entropy$"],
        "cross-entropy of each corpus: training and validation": ["train/[^/]+/cross_entropy$", "val/[^/]+/cross_entropy$"],
        "loss and its terms": ["train/loss$", "train/cross_entropy$", "train/penalty$"],
    },
    "optimizer": {"norms": [f"optimizer/{name}_norm$" for name in ("gradient", "parameter", "update")],
                  "learning rate": ["optimizer/learning_rate$"]},
    "speed": {"tokens per second": ["speed/tokens_per_second$"], "shares": ["speed/data_wait$", "speed/mfu$"]},
}  # fmt: skip
GENERATION = {f"{name}: generated and human": [f"generation/{name}$", f"generation/human/{name}$"] for name in TEXT}


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
        with self.writing():
            self.board = open_board(folder / "tensorboard", purge_step=step if before else None)
            for line in kept.splitlines()[-2:]:  # of training and of validation
                if (row := json.loads(line)).pop("step") == step:
                    self.board.scalars(row, step)

    def write(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """One line of metrics at ``step`` optimizer steps and ``tokens`` trained tokens; raises OutputError."""
        row = {"tokens": tokens, **metrics}
        with self.writing():
            self.file.write(json.dumps({"step": step, **row}).encode() + b"\n")
            self.file.flush()
            self.board.scalars(row, step)

    def sync(self) -> int:
        """Have all lines on the disk; returns their size in bytes. Raises OutputError."""
        with self.writing():
            os.fsync(self.file.fileno())
            return self.file.tell()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise OutputError where the disk does not take the log."""
        try:
            yield
        except OSError as error:
            rule, remedy = f"cannot be written: {error.strerror}", "The checkpoints so far stand"
            raise OutputError("log", key="file", value=str(self.file.name), rule=rule, remedy=remedy) from error

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
        loss = metrics.get("train/cross_entropy")
        text = f"step {step}/{self.max_steps}  " + ("nothing trained" if loss is None else f"train {loss:.3f}")
        text += f"  {metrics['speed/tokens_per_second']:,.0f} tokens/s  {duration(seconds_left)} left"
        self.stream.write(f"\r{text}\x1b[K" if self.in_place else f"{text}\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(f"\r\x1b[K{text}\n" if self.in_place else f"{text}\n")
        self.stream.flush()


class Dashboard(Callback):
    """Collects the numbers of a run as it trains. Rank 0 writes; the other ranks take part in the means.

    ``seconds_per_step`` is training without validation; ``tokens_per_step`` the global batch in tokens.
    """

    def __init__(self, folder: Path, config: RunConfig, data: StreamDataModule) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.name = f"{folder.parent.name}/{folder.name}"
        self.max_steps, self.log_every = config.trainer.max_steps, config.trainer.log_every
        rows = config.data.batch_size * config.trainer.accumulate * config.trainer.ranks
        self.tokens_per_step = rows * config.model.block_size
        self.profiler = profile_into(folder) if config.trainer.profile else None
        self.rows = choose_rows([inputs for inputs, _ in data.validation], config.samples.measure, config.seed)
        self.records = data.records(config.task.eval_records)
        self.run_log: RunLog | None = None
        self.decoder: Decoder | None = None
        self.progress: Progress | None = None
        self.validation: dict[str, float] = {}
        self.measured: dict[str, float] = {}
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
            self.introduce(self.run_log, trainer.global_step)
            self.progress = Progress(self.max_steps)
        self.mark, self.mark_step = time.perf_counter(), trainer.global_step
        if self.profiler:
            self.profiler.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ten batches are traced."""
        if self.profiler:
            self.profiler.step()

    def introduce(self, log: RunLog, step: int) -> None:
        """What TensorBoard is told at every start: the charts, the settings and the command; of a new run the stream, too."""
        shown = dict(CHARTS)
        shown |= {"generation": GENERATION} if len(self.rows) else {}
        if self.config.board.attention_entropy:
            layers = range(self.config.model.n_layer)
            shown["attention"] = {f"nats of each head, layer {i:02d}": [rf"attention/h\.{i:02d}/"] for i in layers}
        words = take_storage(sys.argv[1:])[0]
        with log.writing():
            log.board.layout(shown, step)
            log.board.text("config", preformatted(to_yaml(self.config)), step)
            log.board.text("command", preformatted(f"python -m gpt2_lightning {shlex.join(words)}"), step)
        if step == 0 and self.config.board.stream_examples:
            self.show_stream(log)

    def show_stream(self, log: RunLog) -> None:
        """Documents as they are trained on, each operation on one of them, and how many tokens documents have."""
        shown, lengths = [], dict[str, list[int]]()
        for first in first_documents(self.data, LENGTHS, CHARACTERS):
            of_corpus = lengths.setdefault(first.corpus, [])
            if len(of_corpus) < self.config.board.stream_examples:
                how = ", ".join(first.applied) or "as it is"
                shown.append(f"{first.corpus}, document {len(of_corpus)}, {how}\n  {marked(first.text, first.after)}")
            of_corpus.append(first.tokens)
        shown += [f"{said}\n  {example}" for said, example in augmentation_examples(self.data)]
        found = {f"stream/{name}/tokens_per_document": histogram([torch.tensor(n)]) for name, n in lengths.items()}
        with log.writing():
            if shown:
                log.board.text("stream", preformatted("\n\n".join(shown)), 0)
            log.board.histograms({tag: one for tag, one in found.items() if one}, 0)

    def is_last(self, trainer: Trainer, step: int) -> bool:
        """Whether the run ends with this step: it is the last, or every rank has read its corpora to their end."""
        if step == self.max_steps or not self.data.finite or not self.data.loader:
            return step == self.max_steps
        return trainer.strategy.reduce_boolean_decision(self.data.loader.ended, all=True)

    def log_step(self, trainer: Trainer, module: GPT2Module, step: int, last: bool) -> None:
        """At every ``log_every``-th step and the last, write a line of the metrics since the one before."""
        if (step % self.log_every == 0 or last) and step > self.logged_step:
            metrics = module.training_metrics() | self.speed(trainer, module, step)
            self.logged_step = step
            if self.run_log and self.progress:
                self.run_log.write(step, step * self.tokens_per_step, metrics)
                self.progress.show(step, metrics, (self.max_steps - step) * self.seconds_per_step)
        every = self.config.board.histograms_every
        if every and step % every == 0 and (self.run_log or module.sharded):
            with self.paused():
                found = histograms(module.decoder)
                if self.run_log:
                    with self.run_log.writing():
                        self.run_log.board.histograms(found, step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The decoder for the last samples, while the ranks are there; the trace is written when the profiler stops."""
        assert isinstance(module, GPT2Module)
        if self.config.samples.max_new_tokens:
            self.decoder = module.whole_decoder()
        if self.profiler:
            self.profiler.stop()

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
        metrics, config = module.validation, self.config
        self.validation = dict(metrics)
        texts = len(self.rows) > 0 or len(self.records.held_out) > 0
        alone = texts or config.samples.at_validation or config.board.attention_entropy  # rank 0 uses the decoder by itself
        decoder = module.whole_decoder() if alone else module.decoder
        if self.run_log and self.progress:
            asked = self.rows, config.sampler, config.samples.max_new_tokens, config.seed
            self.measured = measure_generation(decoder, *asked) if len(self.rows) else {}
            self.measured |= self.judged(decoder, step)
            self.validation |= {name: value for name, value in self.measured.items() if name.startswith("task/")}
            self.run_log.write(step, step * self.tokens_per_step, metrics | self.measured)
            if config.samples.at_validation:
                self.show_samples(self.continuations(decoder), step)
            if config.board.attention_entropy:
                self.show_attention(decoder, step)
            values = f"{metrics['val/cross_entropy']:.4f} nats, {metrics['val/bits_per_byte']:.4f} bits per byte"
            judged = "".join(f", {k[5:]} {v:.4g}" for k, v in self.measured.items() if k.startswith("task/"))
            self.progress.note(f"step {step}: validation {values}{judged}")

    def judged(self, decoder: Decoder, step: int) -> dict[str, float]:
        """What the task measures on held-out records; what it shows goes to TensorBoard, what it keeps to task.json."""
        if not self.records.held_out:
            return {}
        task = self.data.task
        model = RecordModel(decoder, self.data.tokenizer, task.config.cut, self.config.seed)
        found = task.judge(self.records, model)
        assert self.run_log
        with self.run_log.writing():
            self.run_log.board.text("task", preformatted(found.text), step)
            kept = {"step": step, "measures": found.measures, **found.details}
            write_whole(self.folder / "task.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return {f"task/{name}": value for name, value in found.measures.items()}

    def show_attention(self, decoder: Decoder, step: int) -> None:
        """The entropy of each head on the first validation rows."""
        assert self.run_log
        tokens = torch.from_numpy(self.data.validation[0][0][:ROWS].astype("int64")).clamp_(min=0).to(decoder.wte.weight.device)
        heads = attention_entropy(decoder, tokens).tolist()
        found = {f"attention/h.{i:02d}/entropy.{j:02d}": v for i, layer in enumerate(heads) for j, v in enumerate(layer)}
        with self.run_log.writing():
            self.run_log.board.scalars(found, step)

    def show_samples(self, found: list[Continuation], step: int) -> None:
        """The samples, each behind its prompt, and what was measured at the last validation."""
        assert self.run_log
        measures = "\n".join(f"{name}  {value:.4g}" for name, value in (self.validation | self.measured).items())
        texts = "".join(f"<pre><strong>{escaped(one.prompt)}</strong>{escaped(one.text)}</pre>\n\n" for one in found)
        with self.run_log.writing():
            self.run_log.board.text("samples", texts + preformatted(measures), step)

    def continuations(self, decoder: Decoder) -> list[Continuation]:
        """The configured prompts and their continuations."""
        asked = GenerateConfig(max_new_tokens=self.config.samples.max_new_tokens, seed=self.config.seed)
        prompts = self.config.samples.prompts if asked.max_new_tokens else []
        found = continue_texts(decoder, self.data.tokenizer, prompts, asked, self.config.sampler)
        return [one for (one,) in found]

    def finish(self) -> str:
        """Write samples.txt, close the files, and return the samples."""
        if not self.run_log:
            return ""
        found = self.continuations(self.decoder) if self.decoder else []
        text = "\n\n".join(one.prompt + one.text for one in found) + "\n"
        if self.config.samples.max_new_tokens:
            (self.folder / "samples.txt").write_text(text, encoding="utf-8")
        if found:
            self.show_samples(found, self.logged_step)
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
