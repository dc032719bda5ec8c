"""The LightningModule: introduces decoder, loss and optimizer to each other; no mathematics of its own.

In: batches ``(inputs, targets)``. Out: gradients for the trainer, and the numbers of the steps since they were last asked for.
One number: 2 to 3 ms, what a step costs that calls ``self.log``; so this module never calls it, keeps its sums on the
device, and hands them over when ``training_metrics`` is called.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from gpt2_lightning.config import RunConfig
from gpt2_lightning.data.loader import Batch
from gpt2_lightning.decoder import Decoder, Undrawn
from gpt2_lightning.guard import Guard
from gpt2_lightning.loss import (
    IGNORED,
    add_penalty_gradient,
    clip_gradients,
    cross_entropy,
    loss_terms,
    parameter_norm,
    scale_gradients,
    token_losses,
)
from gpt2_lightning.metrics import bits_per_byte, perplexity
from gpt2_lightning.optimizer import build_optimizer, schedule_factor, set_learning_rate
from gpt2_lightning.shards import gathered, shard
from gpt2_lightning.signals import Signals

__all__ = ["GPT2Module"]


class GPT2Module(LightningModule):
    """GPT-2 under its regularised loss, its weights drawn unless a ``decoder`` is given.

    ``validation`` holds the metrics of the last validation.
    """

    def __init__(
        self,
        config: RunConfig,
        names: list[str],
        bytes_per_token: Tensor,
        loss_weights: list[float] | None = None,
        signals: Signals | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.config, self.signals = config, signals or Signals()
        self.decoder = Decoder(config.model) if decoder is None else decoder
        self.names = names
        even = loss_weights is None or len(set(loss_weights)) == 1
        self.loss_weights: Tensor | None
        self.register_buffer("loss_weights", None if even else torch.tensor(loss_weights), persistent=False)
        self.register_buffer("bytes_per_token", bytes_per_token, persistent=False)
        self.validation: dict[str, float] = {}
        self.trained = list(self.decoder.parameters())  # gathering them anew costs a nano model's step a twentieth
        self.n_parameters = sum(p.numel() for p in self.trained)
        self.divided = config.trainer.accumulate * config.trainer.ranks > 1  # a step into several batches
        compiled = config.trainer.compile and not self.sharded  # a sharded decoder's blocks are, each by itself
        self.train_objective = torch.compile(self.objective) if compiled else self.objective

    @property
    def sharded(self) -> bool:
        """Whether this rank holds a part of each parameter, and all ranks have to call the decoder together."""
        return self.config.trainer.strategy == "fsdp" and self.config.trainer.ranks > 1

    def configure_model(self) -> None:
        """Keep this rank's part of the decoder, where that is asked for."""
        if self.sharded:
            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            shard(self.decoder, list(self.decoder.h), mesh, self.config.trainer.compile)
            self.trained = list(self.decoder.parameters())

    def whole_decoder(self) -> Decoder:
        """The decoder as one rank alone can use it; all ranks call it together, and rank 0 can use it."""
        if not self.sharded:
            return self.decoder
        weights = gathered(self.decoder.state_dict(), self.trainer.is_global_zero)
        with torch.device("meta"), Undrawn():
            whole = Decoder(self.config.model)
        if self.trainer.is_global_zero:
            whole.load_state_dict(weights, assign=True)
            whole.to(self.device)
        return whole.eval()

    def objective(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of one batch, ``inputs``, ``targets`` and perhaps ``weights`` ``[B, T]``, and each token's own.

        Where a step is divided, it is a sum over B * T until ``join_batches`` knows what the targets of all batches weigh.
        """
        over = float(targets.numel()) if self.divided else None
        hidden = self.decoder.hidden(inputs)
        return cross_entropy(hidden, self.decoder.wte.weight, targets, self.config.loss.chunk_tokens, weights, over)

    def configure_optimizers(self) -> Optimizer:
        """The configured optimizer; fused unless a gradient scaler must come between."""
        return build_optimizer(self.config.optimizer, self.decoder, fused=self.trainer.precision != "16-mixed")

    def on_fit_start(self) -> None:
        """Make the sums that training adds to: over the steps since the last line, and over the batches of this step."""
        self.sums_of_steps = {
            "loss": torch.zeros(2, device=self.device),
            "corpora": torch.zeros(len(self.names), 2, device=self.device),
        }
        self.step_loss = torch.zeros((), device=self.device)
        self.step_weight = torch.zeros((), device=self.device)
        self.step_corpora = torch.zeros(len(self.names), 2, device=self.device)
        self.gradient_norm = self.norm = torch.zeros((), device=self.device)
        scaled = self.trainer.precision == "16-mixed"
        self.guard = Guard(self.config.trainer, self.device, self.trainer.world_size, scaled)
        self.before: list[Tensor] = []  # the parameters as they were before a step that is logged

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy; the penalty's gradient is added once a step, in closed form."""
        weights = None if self.loss_weights is None or batch.corpora is None else self.loss_weights[batch.corpora.int()]
        loss, per_token = self.train_objective(batch.inputs, batch.targets, weights)
        self.step_loss.add_(loss.detach())
        if not self.divided and batch.corpora is None:
            return loss
        counted = batch.targets.flatten() != IGNORED
        if self.divided:
            self.step_weight += (counted if weights is None else counted * weights.flatten()).sum() / len(counted)
        if batch.corpora is not None:
            self.step_corpora.index_add_(0, batch.corpora.flatten().int(), torch.stack([per_token, counted], 1).float())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradients are whole and averaged over the ranks: add the penalty's, and set this step's learning rate."""
        if self.divided:
            self.join_batches()
        if self.config.loss.beta:
            self.norm = add_penalty_gradient(self.trained, self.config.loss.beta)
        set_learning_rate(optimizer.param_groups, self.learning_rate(self.global_step))
        step, trainer = self.global_step + 1, self.config.trainer
        if step % trainer.log_every == 0 or step == trainer.max_steps:
            self.before = [p.detach().clone() for p in self.trained]

    def join_batches(self) -> None:
        """Make the step's loss and gradients the mean over all targets that count in it, however it is divided.

        What they weigh in a batch is its share of the full B * T; a mean of the batches' means would depend on the division.
        """
        if self.config.trainer.ranks > 1:
            torch.distributed.all_reduce(self.step_weight)
        factor = self.config.trainer.accumulate * self.config.trainer.ranks / self.step_weight
        if self.step_weight.is_cuda or factor != 1:
            factor = torch.where(self.step_weight > 0, factor, 0.0)
            scale_gradients(self.trained, factor)
            self.step_loss *= factor
        self.step_weight.zero_()

    def learning_rate(self, step: int) -> float:
        """The learning rate of step ``step`` = 0, 1, ..."""
        return self.config.optimizer.lr * schedule_factor(step, self.config.schedule, self.config.trainer.max_steps)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Have the step judged, and scale the gradient of the whole loss down to the largest norm allowed."""
        self.gradient_norm = parameter_norm([p.grad for p in self.trained if p.grad is not None])
        loss = self.step_loss / self.config.trainer.accumulate
        good = self.guard.judge(self.global_step + 1, loss, self.gradient_norm, optimizer, self.signals.number)
        self.add_step(good)
        if self.config.trainer.clip:
            clip_gradients(self.trained, self.config.trainer.clip, self.gradient_norm)

    def add_step(self, good: Tensor) -> None:
        """Add this step's sums to those of the steps before, unless it was held: it has not been trained on."""
        one = torch.stack([self.step_loss, torch.ones_like(self.step_loss)])
        self.sums_of_steps["loss"] += torch.where(good, one, 0.0)
        self.step_loss.zero_()
        if len(self.names) > 1:
            self.sums_of_steps["corpora"] += torch.where(good, self.step_corpora, 0.0)
            self.step_corpora.zero_()

    def training_metrics(self) -> dict[str, float]:
        """Means over the steps since the last call and over the ranks, none where all were held; norms of the last step.

        Waits for the device.
        """
        total, steps = self.sums_of_steps["loss"].unbind()
        mean = self.trainer.strategy.reduce(total / (steps * self.config.trainer.accumulate).clamp(min=1), reduce_op="mean")
        norm = self.norm if self.config.loss.beta else parameter_norm(self.trained)
        terms = loss_terms(mean, norm, self.config.loss)
        losses = self.corpus_metrics(float(terms.cross_entropy)) | {
            "train/cross_entropy": float(terms.cross_entropy),
            "train/penalty": float(norm) * self.config.loss.beta,
            "train/loss": float(terms.total),
        }
        trained = bool(steps)
        for sums in self.sums_of_steps.values():
            sums.zero_()
        return (losses if trained else {}) | {
            "optimizer/learning_rate": self.learning_rate(max(0, self.global_step - 1)),
            "optimizer/gradient_norm": float(self.gradient_norm),
            "optimizer/parameter_norm": float(norm),
            **self.update_norm(),
        }

    def update_norm(self) -> dict[str, float]:
        """The norm of the last step's change of the parameters, where they were copied before it: for every logged step but a
        last one that only the end of the stream made the last.

        It costs two passes over the weights, and a second copy of them from before the optimizer until here, when the
        activations are gone; other steps pay nothing.
        """
        before, self.before = self.before, []
        for old, p in zip(before, self.trained, strict=False):
            old.sub_(p.detach())
        return {"optimizer/update_norm": float(parameter_norm(before))} if before else {}

    def corpus_metrics(self, mean: float) -> dict[str, float]:
        """Each corpus's cross-entropy and its share of the targets since the last call, over the ranks."""
        if len(self.names) == 1:
            return {f"train/{self.names[0]}/cross_entropy": mean, f"data/{self.names[0]}/share": 1.0}
        sums = self.trainer.strategy.reduce(self.sums_of_steps["corpora"].clone(), reduce_op="sum").tolist()
        total = sum(count for _, count in sums) or 1.0
        losses = {f"train/{n}/cross_entropy": nats / count for n, (nats, count) in zip(self.names, sums, strict=True) if count}
        return losses | {f"data/{n}/share": count / total for n, (_, count) in zip(self.names, sums, strict=True)}

    def on_validation_epoch_start(self) -> None:
        """Per corpus: nats, tokens, bytes, and targets that were the likeliest word."""
        self.sums = torch.zeros(len(self.names), 4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch of one corpus; beta has no part in it."""
        inputs, targets, _ = batch
        losses, hits = token_losses(self.decoder.hidden(inputs), self.decoder.wte.weight, targets)
        counted = targets != IGNORED
        n_bytes = (self.bytes_per_token[targets.clamp(min=0)] * counted).sum()  # type: ignore[index]
        self.sums[dataloader_idx] += torch.stack([losses.double().sum(), counted.sum(), n_bytes, hits.sum()])

    def on_validation_epoch_end(self) -> None:
        """Metrics over all ranks: per corpus, and over all tokens together."""
        if self.sharded:
            self.decoder.reshard()  # type: ignore[operator]
        sums = self.trainer.strategy.reduce(self.sums, reduce_op="sum")
        parts = {f"{name}/": part for name, part in zip(self.names, sums.tolist(), strict=True)}
        self.validation = validation_metrics("", sums.sum(0).tolist())
        for name, part in parts.items():
            self.validation |= validation_metrics(name, part)


def validation_metrics(corpus: str, sums: list[float]) -> dict[str, float]:
    """The named metrics from ``[nats, tokens, bytes, hits]``."""
    nats, tokens, n_bytes, hits = sums
    mean = nats / max(1.0, tokens)
    return {
        f"val/{corpus}cross_entropy": mean,
        f"val/{corpus}perplexity": perplexity(mean),
        f"val/{corpus}bits_per_byte": bits_per_byte(nats, int(n_bytes)),
        f"val/{corpus}accuracy": hits / max(1.0, tokens),
    }
