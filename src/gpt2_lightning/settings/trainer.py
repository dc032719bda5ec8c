"""How long, where and how precisely a run trains; what it keeps."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

from gpt2_lightning.settings.setting import Settings, setting

PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,127}"
POLICIES = ("stop", "skip", "rewind")


@dataclass(kw_only=True, slots=True)
class TrainerConfig(Settings):
    """The training loop."""

    group: ClassVar[str] = "trainer"

    max_steps: int = setting(1000, "optimizer steps of the run", at_least=1)
    val_every: int = setting(250, "optimizer steps between validations", at_least=1)
    log_every: int = setting(50, "optimizer steps between logged lines", at_least=1)
    threads: int | None = setting(None, "CPU threads of the run (none: as many as there are cores)", at_least=1)
    accelerator: str = setting("auto", "kind of device", choices=("auto", "cpu", "gpu"))
    devices: int | None = setting(
        1, "devices of a node, each a rank (none: all there are, or as the launcher says)", at_least=1
    )
    nodes: int | None = setting(1, "machines (none: as torchrun or srun says)", at_least=1)
    strategy: str = setting("ddp", "what a rank holds: all of the model (ddp) or a part (fsdp)", choices=("ddp", "fsdp"))
    precision: str = setting("auto", "number format (auto: bf16-mixed where it is fast)", choices=PRECISIONS)
    accumulate: int = setting(1, "batches whose gradients make one step", at_least=1)
    batch_tokens: int | None = setting(
        None, "tokens of a step on all devices; accumulate follows (none: it is set)", at_least=1
    )
    clip: float = setting(1.0, "largest gradient norm (0: no clipping)", at_least=0)
    compile: bool = setting(False, "compile the decoder with torch.compile")
    patience: int | None = setting(None, "validations without a better one before stopping (none: never)", at_least=1)
    profile: bool = setting(False, "write a profiler trace of a few steps")
    on_nonfinite: str = setting("stop", "what to do at a loss or gradient that is not finite", choices=POLICIES)
    on_spike: str = setting("ignore", "what to do at a loss far above those before it", choices=("ignore", *POLICIES))
    spike_deviations: float = setting(6.0, "standard deviations above the mean that make a spike", above=0)
    spike_window: int = setting(100, "steps over which mean and deviation are taken; none before is a spike", at_least=2)

    def check_rules(self) -> None:
        """What a sharded model can be trained with; the size of a step is said once."""
        if self.batch_tokens is not None and self.accumulate != 1:
            raise self.refuse("accumulate", "follows from trainer.batch_tokens", "Set one of the two")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise self.refuse("precision", "cannot be had with trainer.strategy=fsdp", "Set trainer.precision=bf16-mixed")

    def accumulation(self, batch_size: int, block_size: int, ranks: int) -> int:
        """Batches a rank and step; raises ConfigError where ``batch_tokens`` cannot be made of whole ones."""
        if self.batch_tokens is None:
            return self.accumulate
        together = batch_size * block_size * ranks
        if self.batch_tokens % together:
            rule = f"is no multiple of {together}, the tokens of a batch of {batch_size} rows on each of {ranks} ranks"
            below = self.batch_tokens // together * together
            near = " or ".join(str(n) for n in (below, below + together) if n)
            raise self.refuse("batch_tokens", rule, f"Set trainer.batch_tokens={near}, or another data.batch_size")
        return self.batch_tokens // together

    def step_rows(self, batch_size: int, block_size: int, ranks: int) -> int:
        """Rows of a step on all ranks."""
        return batch_size * self.accumulation(batch_size, block_size, ranks) * ranks

    @property
    def ranks(self) -> int:
        """Ranks in all, as far as they are named here."""
        return (self.nodes or 1) * (self.devices or 1)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig(Settings):
    """What is saved, and when. The newest ``keep`` are kept, and the best as far as each of them knows."""

    group: ClassVar[str] = "checkpoint"

    save: bool = setting(True, "write checkpoints")
    every: int | None = setting(None, "optimizer steps between checkpoints (none: one after every validation)", at_least=1)
    keep: int = setting(2, "verified checkpoints that are kept", at_least=2)


@dataclass(kw_only=True, slots=True)
class SamplesConfig(Settings):
    """The text a run writes at its end, and what is measured of text at each validation."""

    group: ClassVar[str] = "samples"

    prompts: list[str] = field(default_factory=lambda: [""])
    max_new_tokens: int = setting(200, "new tokens of each sample (0: no samples)", at_least=0)
    at_validation: bool = setting(False, "write samples at each validation too")
    measure: int = setting(0, "validation rows whose beginnings are continued and measured at each validation", at_least=0)

    def check_rules(self) -> None:
        """What has no tokens cannot be measured."""
        if self.measure and not self.max_new_tokens:
            raise self.refuse("measure", "needs samples.max_new_tokens of at least 1", "Set samples.measure=0")


@dataclass(kw_only=True, slots=True)
class BoardConfig(Settings):
    """What TensorBoard shows beside the metrics; training does not depend on it."""

    group: ClassVar[str] = "board"

    histograms_every: int | None = setting(
        None, "optimizer steps between histograms of weights and gradients (none: never)", at_least=1
    )
    attention_entropy: bool = setting(False, "show the entropy of attention by layer and head at each validation")
    stream_examples: int = setting(
        2, "documents shown as they are trained on (0: none, and no lengths of documents)", at_least=0, at_most=64
    )


@dataclass(kw_only=True, slots=True)
class RunSettings(Settings):
    """A run's name and place: ``outputs/runs/NAME/ID``, or ``outputs/sweeps/STUDY/ID`` for a trial."""

    group: ClassVar[str] = "run"

    name: str = setting("auto", "name of the run (auto: the experiment's)")
    id: str = setting("auto", "folder of the run below its name (auto: that of an unfinished equal run, else date and time)")
    folder: str = setting("outputs", "output folder")
    study: str = setting("", "study whose trial the run is (empty: none)")

    def check_rules(self) -> None:
        """Names become folders: they must stay inside the output folder and fit a file system."""
        for name in ("name", "id", *(["study"] if self.study else [])):
            value = getattr(self, name)
            if not re.fullmatch(NAME, value):
                rule = "must be 1 to 128 letters, digits, '_', '-', '.', '=' or '+', and not begin with '.', '-' or '+'"
                raise self.refuse(name, rule, f"Set run.{name}=my_{name}")
