"""What the ``generate`` command is asked for. One number: 8, the texts that are continued side by side."""

from dataclasses import dataclass, field

from gpt2_lightning.settings.setting import Settings, setting

NUMBERS = ("float32", "bfloat16", "int8")
STEPS = ("auto", "fixed", "growing")


@dataclass(kw_only=True, slots=True)
class GenerateConfig(Settings):
    """How prompts are continued; how each token is drawn is the sampler's business."""

    max_new_tokens: int = setting(200, "new tokens of each text at most", at_least=0)
    n: int = setting(1, "texts for each prompt; with beam search the n best", at_least=1)
    seed: int = setting(1337, "seed", at_least=0)
    stop: list[str] = field(default_factory=list)
    context: str = setting("slide", "what happens where the context is full", choices=("slide", "stop"))
    slide_by: int = setting(1, "tokens that a full context drops at once (more is faster, and forgets more)", at_least=1)
    numbers: str = setting("float32", "numbers of the matrix products", choices=NUMBERS)
    batch_size: int = setting(8, "texts continued side by side", at_least=1)
    step: str = setting("auto", "shapes of a token's step (fixed: one launch on a GPU, and the default there)", choices=STEPS)

    def check_rules(self) -> None:
        """An empty stop string would stop at once, and a string is a list of its characters."""
        if isinstance(self.stop, str) or "" in self.stop:
            raise self.refuse("stop", "must be a list of strings that are not empty")
