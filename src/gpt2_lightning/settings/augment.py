"""How the training text is changed: four operations, each with its own probability and strength, and their order.

Off by default: every ``p`` is 0. Validation text is never changed.
"""

from dataclasses import dataclass, field

from gpt2_lightning.settings.setting import Settings, setting

OPERATIONS = ("length", "reverse", "swap", "noise")


@dataclass(kw_only=True, slots=True)
class OperationConfig(Settings):
    """What all operations share; at ``strength`` 0 an operation changes nothing."""

    p: float = setting(0.0, "probability that a document gets the operation", at_least=0, at_most=1)
    strength: float = setting(0.5, "how much of the document changes", at_least=0, at_most=1)

    @property
    def active(self) -> bool:
        """Whether the operation ever changes a document."""
        return self.p > 0 and self.strength > 0


@dataclass(kw_only=True, slots=True)
class LengthConfig(OperationConfig, group="augment.length"):
    """A crop: the kept share is uniform in [1 - strength, 1]."""

    strength: float = setting(0.5, "largest share of the text that is cut off", at_least=0, at_most=1)


@dataclass(kw_only=True, slots=True)
class ReverseConfig(OperationConfig, group="augment.reverse"):
    """The order of sentences, words or tokens, turned around in one span."""

    strength: float = setting(1.0, "share of the units that the reversed span holds", at_least=0, at_most=1)
    unit: str = setting("sentences", "what is put in reverse order", choices=("sentences", "words", "tokens"))


@dataclass(kw_only=True, slots=True)
class SwapConfig(OperationConfig, group="augment.swap"):
    """Pairs of words that change places."""

    strength: float = setting(0.1, "share of the words that change places", at_least=0, at_most=1)
    window: int = setting(1, "largest distance of two words that change places (1: adjacent)", at_least=1)


@dataclass(kw_only=True, slots=True)
class NoiseConfig(OperationConfig, group="augment.noise"):
    """Misspelt characters or random tokens in the input; the labels stay clean unless they are asked to be noisy too."""

    strength: float = setting(0.05, "share of the characters or tokens that are changed", at_least=0, at_most=1)
    unit: str = setting("characters", "what is changed", choices=("characters", "tokens"))
    labels: str = setting("clean", "what is to be predicted: the clean text, or the noisy", choices=("clean", "noisy"))


@dataclass(kw_only=True, slots=True)
class AugmentConfig(Settings, group="augment"):
    """The four operations and the order in which they are done."""

    order: list[str] = setting(list(OPERATIONS), "order of the operations")
    length: LengthConfig = field(default_factory=LengthConfig)
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    swap: SwapConfig = field(default_factory=SwapConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def check_rules(self) -> None:
        """Every operation has one place in the order; switched off is what ``p`` is for."""
        if sorted(self.order) != sorted(OPERATIONS):
            rule = f"must hold each of {', '.join(OPERATIONS)} exactly once"
            raise self.refuse("order", rule, f"Set augment.order=[{','.join(OPERATIONS)}], and p=0 for what is not wanted")

    @property
    def active(self) -> bool:
        """Whether any document is ever changed."""
        return self.length.active or self.reverse.active or self.swap.active or self.noise.active
