"""An experiment platform for GPT-2. ``import gpt2_lightning`` loads nothing heavy; the names below load what they need."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2_lightning.decoder import Decoder, DecoderConfig

__version__ = "0.1.0"
__all__ = ["Decoder", "DecoderConfig", "__version__"]

HOMES = {"Decoder": "gpt2_lightning.decoder", "DecoderConfig": "gpt2_lightning.settings.decoder"}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'gpt2_lightning' has no attribute '{name}'")
