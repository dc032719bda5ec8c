"""The optimizers and the schedule of their learning rate.

Every option has ``lr`` and ``weight_decay``; an experiment sets only these, so that the optimizer can be swapped under it.
"""

from dataclasses import dataclass

from gpt2_lightning.settings.setting import Settings, setting


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(Settings, group="optimizer"):
    """What all optimizers share."""

    name: str = setting("", "optimizer")
    lr: float = setting(1e-3, "learning rate", at_least=0)
    weight_decay: float = setting(0.0, "weight decay", at_least=0)
    decay_all: bool = setting(False, "decay norms, biases and embeddings too")
    allow_zero_lr: bool = setting(False, "accept a learning rate of 0")

    def check_rules(self) -> None:
        """A learning rate of 0 trains nothing: it has to be meant."""
        if self.lr == 0 and not self.allow_zero_lr:
            raise self.refuse("lr", "must be above 0", "To keep the weights as they are, add optimizer.allow_zero_lr=true")


@dataclass(kw_only=True, slots=True)
class SGDConfig(OptimizerConfig):
    """Gradient descent with momentum."""

    name: str = setting("sgd", "optimizer", choices=("sgd",))
    lr: float = setting(0.1, "learning rate", at_least=0)
    momentum: float = setting(0.9, "momentum", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov momentum")

    def check_rules(self) -> None:
        """Nesterov's step needs a momentum to look ahead with."""
        OptimizerConfig.check_rules(self)
        if self.nesterov and self.momentum == 0:
            raise self.refuse("nesterov", "needs a momentum above 0", "Set optimizer.momentum=0.9")


@dataclass(kw_only=True, slots=True)
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015); its weight decay is an L2 term in the gradient."""

    name: str = setting("adam", "optimizer", choices=("adam",))
    betas: list[float] = setting([0.9, 0.999], "decay rates of the two moments", at_least=0, below=1)
    eps: float = setting(1e-8, "term added to the denominator", above=0)

    def check_rules(self) -> None:
        """Two moments, two rates."""
        OptimizerConfig.check_rules(self)
        if len(self.betas) != 2:
            raise self.refuse("betas", "must be two numbers", "Set optimizer.betas=[0.9,0.95]")


@dataclass(kw_only=True, slots=True)
class AdamWConfig(AdamConfig):
    """AdamW (Loshchilov and Hutter 2019), with the moments and decay that GPT models are trained with."""

    name: str = setting("adamw", "optimizer", choices=("adamw",))
    weight_decay: float = setting(0.1, "weight decay", at_least=0)
    betas: list[float] = setting([0.9, 0.95], "decay rates of the two moments", at_least=0, below=1)


@dataclass(kw_only=True, slots=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018): second moments by row and column, no first moment."""

    name: str = setting("adafactor", "optimizer", choices=("adafactor",))
    lr: float = setting(1e-2, "learning rate, relative to each tensor's own scale", at_least=0)
    beta2_decay: float = setting(-0.8, "exponent of the second moment's decay", below=0)
    clip_threshold: float = setting(1.0, "largest root mean square of an update", above=0)


@dataclass(kw_only=True, slots=True)
class MuonConfig(AdamWConfig):
    """Muon (Jordan et al. 2024) for the blocks' matrices, scaled to AdamW's update; AdamW for all else."""

    name: str = setting("muon", "optimizer", choices=("muon",))
    momentum: float = setting(0.95, "momentum of the matrices", at_least=0, below=1)
    newton_schulz_steps: int = setting(5, "steps of the orthogonalisation", at_least=1, at_most=99)


@dataclass(kw_only=True, slots=True)
class ScheduleConfig(Settings, group="schedule"):
    """The learning rate as a factor of ``optimizer.lr`` over the run's steps."""

    shape: str = setting("cosine", "shape of the schedule", choices=("constant", "linear", "cosine", "wsd"))
    warmup_steps: int = setting(0, "optimizer steps of linear warm-up", at_least=0)
    final_factor: float = setting(0.1, "factor at the last step", at_least=0, at_most=1)
    decay_share: float = setting(0.2, "share of the steps in which wsd decays", above=0, at_most=1)


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "adafactor": AdafactorConfig,
    "muon": MuonConfig,
}
