"""How the next token is drawn when text is generated."""

from dataclasses import dataclass
from typing import ClassVar

from gpt2_lightning.settings.setting import Settings, setting


@dataclass(kw_only=True, slots=True)
class SamplerConfig(Settings):
    """Top-k sampling with temperature; ``k=1`` and ``temperature=0`` both mean the likeliest token."""

    group: ClassVar[str] = "sampler"

    k: int = setting(10, "likeliest tokens that stay in the draw", at_least=1)
    temperature: float = setting(1.0, "temperature (0: greedy)", at_least=0)
