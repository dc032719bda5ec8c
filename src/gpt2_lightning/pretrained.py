"""Weights that are there: what ``init=`` or ``run=`` names in, a decoder out.

A folder in transformers' format, nanoGPT's checkpoint, a released model by its name, fetched from the hub, or a run of ours.
One number: 2 files are fetched of a released model, its settings and its safetensors; no pickle is.
Choice not taken: a decoder drawn at random and then overwritten, which holds the weights twice.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt2_lightning.decoder import Decoder, DecoderConfig, Undrawn
from gpt2_lightning.errors import CheckpointError, MachineError, first_line
from gpt2_lightning.nanogpt import read_nanogpt, read_nanogpt_config
from gpt2_lightning.settings.pretrained import RELEASED, require_fit, require_there
from gpt2_lightning.trained import find_run, load_decoder
from gpt2_lightning.weights import read_config, read_weights

__all__ = ["Opened", "find_weights", "load_weights", "open_decoder"]

FETCHED = ("config.json", "model.safetensors")


class Opened(NamedTuple):
    """A decoder for evaluation; of a run of ours also its settings as plain data, and its checkpoint's folder."""

    decoder: Decoder
    config: dict[str, Any]
    checkpoint: Path | None


def find_weights(init: str, model: DecoderConfig) -> Path:
    """The folder or file of the weights, fetched where they are on the hub, if a model of these settings can start from them.

    Raises ConfigError where the shapes differ, CheckpointError where there are no such weights.
    """
    path = fetch(init) if init in RELEASED else local(init)
    require_fit(init, model, read_nanogpt_config(path) if path.is_file() else read_config(path / "config.json"))
    return path


def load_weights(path: Path, model: DecoderConfig) -> Decoder:
    """A decoder of these settings with the weights that ``find_weights`` found, in training mode; raises CheckpointError.

    Of a longer context the first positions are kept.
    """
    read = read_nanogpt if path.is_file() else read_weights
    _, tensors = read(path, torch.float32)
    if len(tensors["wpe.weight"]) > model.block_size:
        tensors["wpe.weight"] = tensors["wpe.weight"][: model.block_size].clone()
    with torch.device("meta"), Undrawn():
        decoder = Decoder(model)
    decoder.load_state_dict(tensors, assign=True)
    return decoder


def open_decoder(run: str, outputs: Path, accelerator: str = "cpu") -> Opened:
    """What ``run=`` means: a run or checkpoint of ours, a folder in transformers' format, or else a released model's name.

    Raises CheckpointError, and MachineError for a GPU that is not there.
    """
    device = choose_device(accelerator)
    opened = find_decoder(run, outputs)
    opened.decoder.to(device)
    return opened


def choose_device(accelerator: str) -> torch.device:
    """A GPU where there is one and it is not asked otherwise; raises MachineError."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        rule = f"none is available to torch {torch.__version__}"
        raise MachineError("GPU", key="accelerator", value=accelerator, rule=rule, remedy="Set accelerator=cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def find_decoder(run: str, outputs: Path) -> Opened:
    """The decoder that ``run=`` means, on the CPU; raises CheckpointError."""
    try:
        if (Path(run) / "config.json").is_file():
            return Opened(Decoder.from_pretrained(run), {}, None)
        path = find_run(run, outputs)
    except OSError as error:
        raise CheckpointError("run", key="run", value=run, rule=f"cannot be read: {error.strerror}") from error
    except CheckpointError:
        if run not in RELEASED:
            raise
        return Opened(Decoder.from_pretrained(fetch(run)), {}, None)
    return Opened(*load_decoder(path), path)


def local(init: str) -> Path:
    """A folder or file on disk; raises CheckpointError."""
    require_there(init)
    if Path(init).is_file() and (Path(init).parent / "config.json").is_file():
        rule, remedy = "is one file of a folder in transformers' format", f"Set init={Path(init).parent}"
        raise CheckpointError("weights to start from", key="init", value=init, rule=rule, remedy=remedy)
    return Path(init)


def fetch(name: str) -> Path:
    """The folder with a released model's files, fetched unless they are there already; raises CheckpointError."""
    import huggingface_hub

    hub = RELEASED[name].hub
    try:
        paths = [Path(huggingface_hub.hf_hub_download(hub, file)) for file in FETCHED]
        return paths[0].parent
    except Exception as error:  # of the network, the hub, the disk
        rule = f"'{hub}' cannot be fetched: {type(error).__name__}: {first_line(error)}"
        remedy = f"Check the network, or download it elsewhere and give its folder, as ./{name}"
        raise CheckpointError("released weights", key="init", value=name, rule=rule, remedy=remedy) from error
