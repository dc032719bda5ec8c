"""An experiment platform for GPT-2. ``import gpt2_lightning`` loads nothing heavy; the names below load what they need."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2_lightning.decoder import Decoder, DecoderConfig
    from gpt2_lightning.generation.text import generate
    from gpt2_lightning.settings.generate import GenerateConfig
    from gpt2_lightning.settings.sampler import SamplerConfig

__version__ = "0.1.0"
__all__ = ["Decoder", "DecoderConfig", "GenerateConfig", "SamplerConfig", "__version__", "generate"]

HOMES = {
    "Decoder": "gpt2_lightning.decoder",
    "DecoderConfig": "gpt2_lightning.settings.decoder",
    "GenerateConfig": "gpt2_lightning.settings.generate",
    "SamplerConfig": "gpt2_lightning.settings.sampler",
    "generate": "gpt2_lightning.generation.text",
}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'gpt2_lightning' has no attribute '{name}'")
