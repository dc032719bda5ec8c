"""One run, read from top to bottom: seed, data, module, trainer, fit, validate, samples, result.

In: a RunConfig. Out: ``outputs/runs/NAME/ID/`` with config.yaml, metrics.jsonl, result.json, samples.txt, checkpoints/ and
tensorboard/, and a summary on the terminal.
"""

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from gpt2_lightning.checkpoint import find_run, load_decoder
from gpt2_lightning.config import RunConfig, to_yaml
from gpt2_lightning.dashboard import Dashboard, duration
from gpt2_lightning.data.look import Look, look
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import MachineError, OutputError
from gpt2_lightning.generate.engine import continue_tokens
from gpt2_lightning.module import GPT2Module
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.trainer import KeepBest, build_trainer, choose_devices, choose_precision

__all__ = ["generate_text", "train"]

RUN_ID = "GPT2_LIGHTNING_RUN_ID"  # tells the other ranks the id that rank 0 chose


def train(config: RunConfig) -> None:
    """Train as configured; raises PlatformError with what stood in the way."""
    check_machine(config)
    if not is_other_rank():
        check_id(runs_folder(config), config.run.id)
    seed_everything(config.seed, verbose=False)
    data = open_data(config)
    folder = open_folder(config)
    module = GPT2Module(config, data.names, data.bytes_per_token, data.loss_weights)
    dashboard = Dashboard(folder, config, data)
    best = KeepBest(folder / "checkpoints", config.checkpoint.save, config.trainer.patience)
    trainer = build_trainer(config, folder, [dashboard, best])
    fit(trainer, module, data)
    if trainer.is_global_zero:
        samples = write_samples(folder, module.decoder, data.tokenizer, config)
        dashboard.finish(samples)
        unigram = data.unigram_bits_per_byte()
        result = write_result(folder, config, dashboard, best, trainer.global_step, unigram)
        print_summary(folder, config, result, samples)


def check_machine(config: RunConfig) -> None:
    """Raise MachineError when the devices or the precision are not to be had."""
    accelerator = choose_devices(config.trainer.accelerator, config.trainer.devices)
    choose_precision(config.trainer.precision, accelerator)


def open_data(config: RunConfig) -> StreamDataModule:
    """The stream, read far enough to know that it can be trained on; raises DataError."""
    data = StreamDataModule(
        config.data,
        block_size=config.model.block_size,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
        accumulate=config.trainer.accumulate,
        augment=config.augment,
        cache=Path(config.run.folder) / "cache",
    )
    data.setup()
    return data


def look_at_data(config: RunConfig, n: int, skip: int, workers: int, ranks: int) -> None:
    """The ``data`` command: the stream of a run, ``n`` steps of it behind ``skip`` others."""
    rows = config.data.batch_size * config.trainer.accumulate * config.trainer.devices
    folder = Path(config.run.folder) / "cache"
    asked = Look(data=config.data, augment=config.augment, block_size=config.model.block_size, seed=config.seed, rows=rows,
                 cache=folder, steps=n, skip=skip, workers=workers, ranks=ranks)  # fmt: skip
    look(asked)


def open_folder(config: RunConfig) -> Path:
    """Make the run's folder and write its config.yaml; raises OutputError. Other ranks open the one rank 0 made."""
    parent = runs_folder(config)
    if is_other_rank():
        return parent / os.environ[RUN_ID]
    try:
        folder = make_folder(parent, config.run.id)
        (folder / "checkpoints").mkdir()
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        remedy = "Set run.folder to a folder that can be written"
        raise OutputError("run folder", key="run.folder", value=str(parent), rule=str(error), remedy=remedy) from error
    os.environ[RUN_ID] = folder.name
    return folder


def runs_folder(config: RunConfig) -> Path:
    """Where the runs of this name are."""
    return Path(config.run.folder).absolute() / "runs" / config.run.name


def is_other_rank() -> bool:
    """Whether rank 0 has made the run's folder already, and this is another rank."""
    return RUN_ID in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def check_id(parent: Path, run_id: str) -> None:
    """Raise OutputError when a run of that id is there."""
    if run_id != "auto" and (parent / run_id).exists():
        remedy = "Give another run.id, or none"
        raise OutputError("run folder", key="run.id", value=run_id, rule=f"exists already in '{parent}'", remedy=remedy)


def make_folder(parent: Path, run_id: str) -> Path:
    """A new folder of that id, or of the date and time where the id is ``auto``."""
    parent.mkdir(parents=True, exist_ok=True)
    check_id(parent, run_id)
    if run_id != "auto":
        (parent / run_id).mkdir()
        return parent / run_id
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    for name in (now, *(f"{now}-{n}" for n in range(2, 1000))):
        try:
            (parent / name).mkdir()
            return parent / name
        except FileExistsError:
            continue
    raise OutputError("run folder", key="run.id", value=now, rule="a thousand runs began in this second")


def fit(trainer: Trainer, module: GPT2Module, data: StreamDataModule) -> None:
    """Train; gives SIGINT, SIGTERM and a full device their own exit status, where Lightning has 1, 0 and a trace."""
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        if not trainer.received_sigterm:
            raise
    except torch.OutOfMemoryError as error:
        size = f"{module.n_parameters:,} parameters, batches of {data.config.batch_size} x {data.block_size} tokens"
        remedy = "Lower data.batch_size and raise trainer.accumulate by the same factor"
        raise MachineError("device memory", rule=f"does not hold {size}", remedy=remedy) from error
    finally:
        for warning in data.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    if trainer.received_sigterm:
        print("error: terminated", file=sys.stderr)
        raise SystemExit(143)


def write_samples(folder: Path, decoder: Decoder, tokenizer: Tokenizer, config: RunConfig) -> str:
    """Continue each of the configured prompts and write samples.txt; returns its text."""
    if not config.samples.max_new_tokens:
        return ""
    texts = [
        sample_text(decoder, tokenizer, prompt, config.sampler, config.samples.max_new_tokens, config.seed)
        for prompt in config.samples.prompts
    ]
    text = "\n\n".join(texts) + "\n"
    (folder / "samples.txt").write_text(text, encoding="utf-8")
    return text


def sample_text(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str, sampler: SamplerConfig, max_new_tokens: int, seed: int
) -> str:
    """The prompt and its continuation; an empty prompt starts from end-of-text, which is not shown."""
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
    device = decoder.wte.weight.device
    generator = torch.Generator().manual_seed(seed)
    out = continue_tokens(decoder, torch.tensor([tokens], device=device), max_new_tokens, sampler, generator)
    return tokenizer.decode(out[0].tolist())


def write_result(
    folder: Path, config: RunConfig, dashboard: Dashboard, best: KeepBest, steps: int, unigram: float
) -> dict[str, Any]:
    """Write result.json: the last and the best validation, and what the run took."""
    kept = folder / "checkpoints" / "best.ckpt"
    result = {
        "state": "finished",
        "steps": steps,
        "tokens": steps * dashboard.tokens_per_step,
        "seconds": round(time.perf_counter() - dashboard.started, 3),
        "last": dashboard.validation,
        "best": best.best,
        "best_step": best.best_step,
        "unigram_bits_per_byte": unigram,
        "checkpoint": str(kept.relative_to(folder)) if config.checkpoint.save else None,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def print_summary(folder: Path, config: RunConfig, result: dict[str, Any], samples: str) -> None:
    """What came out, where it is, and the commands to go on with."""
    best = result["best"]
    place = os.path.relpath(folder)
    values = f"{best['val/cross_entropy']:.4f} nats a token, {best['val/bits_per_byte']:.4f} bits per byte"
    shown = "\n".join(f"    {line}" for line in samples.strip().splitlines()[:12])
    print(f"""
best validation  {values}, at step {result["best_step"]}
a unigram model  {result["unigram_bits_per_byte"]:.4f} bits per byte: it knows only how often each token occurs
time             {duration(result["seconds"])} for {result["steps"]:,} steps, {result["tokens"]:,} tokens
folder           {place}

{shown}

go on with
  python -m gpt2_lightning generate run={config.run.name} prompt="To be, or"
  tensorboard --logdir {config.run.folder}
  python -m gpt2_lightning train config={place}/config.yaml trainer.max_steps={2 * config.trainer.max_steps}""")


def generate_text(options: dict[str, str]) -> None:
    """The ``generate`` command, its keys as typed and checked; raises PlatformError."""
    decoder, trained = load_decoder(find_run(options["run"], Path(options["outputs"])))
    sampler = SamplerConfig(k=int(options["sampler.k"]), temperature=float(options["sampler.temperature"]))
    if sampler.k is not None and sampler.k > decoder.config.vocab_size:
        raise sampler.refuse("k", f"must be at most the vocabulary, {decoder.config.vocab_size}")
    tokenizer = load_tokenizer(trained["data"]["tokenizer"])
    print(sample_text(decoder, tokenizer, options["prompt"], sampler, int(options["max_new_tokens"]), int(options["seed"])))
