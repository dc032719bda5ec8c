"""The weight of the penalty, and how the head is computed."""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting


@dataclass(kw_only=True, slots=True)
class LossConfig(Settings, group="loss"):
    """L = cross-entropy(Y | X) + beta * ||theta||_2."""

    beta: float = setting(0.0, "weight of the parameter norm", at_least=0)
    chunk_tokens: int = setting(0, "tokens whose logits are held at once (0: as many as fit 256 MiB)", at_least=0)
