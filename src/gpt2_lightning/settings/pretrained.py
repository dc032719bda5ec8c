"""Weights to start from: the released names and shapes in, what must agree with the run's model out.

One number: 50,257, the words of every released GPT-2. Choice not taken: the shape taken from the weights; a run's settings say
all that it is, and another shape than was written down is more often a slip than a wish.
"""

from pathlib import Path

from gpt2_lightning.errors import CheckpointError
from gpt2_lightning.settings.data import TOKENIZERS
from gpt2_lightning.settings.decoder import DecoderConfig

__all__ = ["RELEASED", "Released", "require_fit", "require_there"]


class Released:
    """A model that OpenAI has released: its id on the hub, its option of ``model=``, and its shape."""

    def __init__(self, option: str, n_layer: int, n_head: int, n_embd: int) -> None:
        self.hub, self.option = f"openai-community/{option.replace('_', '-')}", option
        self.shape = DecoderConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)


RELEASED = {
    "gpt2": Released("gpt2", 12, 12, 768),
    "gpt2-medium": Released("gpt2_medium", 24, 16, 1024),
    "gpt2-large": Released("gpt2_large", 36, 20, 1280),
    "gpt2-xl": Released("gpt2_xl", 48, 25, 1600),
}
MUST_AGREE = ("vocab_size", "n_layer", "n_head", "n_embd")


def require_there(init: str | None) -> None:
    """Raise CheckpointError where weights to start from are neither a released model's nor on disk."""
    if init is None or init in RELEASED:
        return
    try:
        there = Path(init).exists()
    except OSError:  # no name that a file could have
        there = False
    if not there:
        rule = f"is not on disk, and none of {', '.join(RELEASED)}"
        raise CheckpointError("weights to start from", key="init", value=init, rule=rule)


def require_fit(init: str, model: DecoderConfig, stored: DecoderConfig) -> None:
    """Raise ConfigError where a model of these settings cannot start from weights of those; its context may be shorter."""
    options = [f"model={r.option}" for r in RELEASED.values() if all(same(name, r.shape, stored) for name in MUST_AGREE)]
    for name in MUST_AGREE:
        if not same(name, model, stored):
            there = getattr(stored, name)
            words = " and data.tokenizer=gpt2" if (name, there) == ("vocab_size", TOKENIZERS["gpt2"]) else ""
            remedy = f"Set {options[0] if options else f'model.{name}={there}'}{words}"
            raise model.refuse(name, f"differs from the {there} of init={init}", remedy)
    if model.block_size > stored.block_size:
        rule = f"must be at most the context of init={init}, {stored.block_size}"
        raise model.refuse("block_size", rule, f"Set model.block_size={stored.block_size}")
    if model.norm != "pre":
        raise model.refuse("norm", f"must be pre for init={init}: GPT-2 has no other", "Set model.norm=pre")


def same(name: str, a: DecoderConfig, b: DecoderConfig) -> bool:
    """Whether both have the same value."""
    return bool(getattr(a, name) == getattr(b, name))
