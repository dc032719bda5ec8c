"""How the next token is drawn when text is generated. One number: k = 10, the likeliest tokens that stay in the draw."""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting

OF_DRAWING = {"p": None, "min_p": None, "typical": None, "epsilon": None, "draw": "proportional"}


@dataclass(kw_only=True, slots=True)
class SamplerConfig(Settings, group="sampler"):
    """Which tokens stay in the draw, and how one of them is drawn; the filters add up, in the order of the fields.

    ``k=1`` and ``temperature=0`` both mean the likeliest token. Above one beam, nothing is drawn: of these settings beam
    search reads ``k``, the two against repetition, and its own two.
    """

    repetition_penalty: float = setting(1.0, "factor against tokens that the text holds already (1: none)", above=0)
    no_repeat_ngram: int = setting(0, "length of the n-grams that never come twice (0: any may)", at_least=0)
    temperature: float = setting(1.0, "temperature (0: greedy)", at_least=0)
    k: int | None = setting(10, "likeliest tokens that stay in the draw (none: all)", at_least=1)
    epsilon: float | None = setting(
        None, "rank threshold: rank i = 0, 1, ... stays above a probability of epsilon ** ((i + 1) / tau)", above=0, below=1
    )
    tau: float = setting(1.0, "how slowly the rank threshold falls", above=0)
    p: float | None = setting(None, "mass of the nucleus, the likeliest tokens that hold it", above=0, at_most=1)
    min_p: float | None = setting(None, "least probability, as a share of the likeliest token's", above=0, at_most=1)
    typical: float | None = setting(None, "mass of the tokens whose surprise is nearest the entropy", above=0, below=1)
    draw: str = setting("proportional", "how one of the tokens is drawn", choices=("proportional", "uniform"))
    beams: int = setting(1, "sequences that beam search holds (1: no beam search)", at_least=1)
    length_penalty: float = setting(
        1.0, "beams are ranked by log-probability / length ** length_penalty", at_least=-10, at_most=10
    )

    def check_rules(self) -> None:
        """A filter and a beam contradict each other: one asks for a draw, the other for none."""
        for name, off in OF_DRAWING.items():
            if self.beams > 1 and getattr(self, name) != off:
                remedy = f"Set sampler.beams=1, or sampler.{name}={'null' if off is None else off}"
                raise self.refuse(name, f"has no effect in beam search, sampler.beams = {self.beams}", remedy)

    @property
    def warnings(self) -> list[str]:
        """What was set and has no effect beside the rest; not refused, since an experiment may have set it for any sampler."""
        unread = {
            "temperature": self.beams > 1 and self.temperature not in (0, 1) and "in beam search",
            "tau": self.epsilon is None and self.tau != 1 and "without sampler.epsilon",
            "length_penalty": self.beams == 1 and self.length_penalty != 1 and "with one beam",
        }
        return [f"sampler.{name} = {getattr(self, name)} has no effect {why}" for name, why in unread.items() if why]
