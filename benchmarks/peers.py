"""The peers of a training step: plain torch loops over our decoder, over transformers' GPT-2, and over the textbook's.

In: a RunConfig, from which all take shape, batches, precision and clipping. Out: Loops with the same first weights.
One number: the loss of the first step, which has to be the same for all: then they compute the same thing.
"""

from collections.abc import Callable, Iterable

import torch
from contest import clock
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_
from torch.optim import AdamW, Optimizer
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2_lightning.config import RunConfig
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.loss import cross_entropy, parameter_norm
from gpt2_lightning.optimizer import build_optimizer
from gpt2_lightning.run import open_data
from gpt2_lightning.trainer import choose_devices

__all__ = ["PEERS", "Loop", "device_of"]

Objective = Callable[[Tensor, Tensor], Tensor]
Clip = Callable[[Iterable[nn.Parameter], float], object]


class Loop:
    """A plain training loop: zero, forward, backward, clip, step, and nothing logged."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        clip: Clip = clip_grad_norm_,
    ) -> None:
        self.config, self.parameters, self.optimizer, self.clip = config, list(model.parameters()), optimizer, clip
        self.objective = torch.compile(objective) if config.trainer.compile else objective
        self.device = device_of(config)
        self.batches = iter(open_data(config).train_dataloader())
        self.first_loss: float | None = None

    def step(self) -> None:
        """One step of training."""
        batch = next(self.batches)
        inputs, targets = (part.contiguous().to(self.device) for part in (batch.inputs, batch.targets))
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.trainer.precision == "bf16-mixed"):
            loss = self.objective(inputs, targets)
        loss.backward()
        self.clip(self.parameters, self.config.trainer.clip)
        self.optimizer.step()
        if self.first_loss is None:
            self.first_loss = loss.item()

    def round(self, steps: int) -> float:
        """Seconds a step over ``steps`` steps."""
        started = clock()
        for _ in range(steps):
            self.step()
        return (clock() - started) / steps


def device_of(config: RunConfig) -> str:
    """torch's name of the kind of device."""
    return {"gpu": "cuda", "cpu": "cpu"}[choose_devices(config.trainer.accelerator, config.trainer.devices)]


def fresh_decoder(config: RunConfig) -> Decoder:
    """The decoder with the weights that a run of this seed starts from."""
    seed_everything(config.seed, verbose=False)
    return Decoder(config.model)


def plain(config: RunConfig) -> Loop:
    """Our decoder, loss, optimizer and norm in a plain loop: our step without Lightning and dashboard."""
    decoder = fresh_decoder(config).to(device_of(config))

    def objective(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(decoder.hidden(inputs), decoder.wte.weight, targets, config.loss.chunk_tokens)[0]

    return Loop(config, decoder, objective, build_optimizer(config.optimizer, decoder), clip_as_ours)


def clip_as_ours(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """What GPT2Module does."""
    parameters = list(parameters)
    norm = parameter_norm([p.grad for p in parameters if p.grad is not None])
    clip_grads_with_norm_(parameters, largest, norm)


def transformers(config: RunConfig) -> Loop:
    """transformers' GPT-2 with torch's AdamW as it comes."""
    model = transformers_model(config)
    return transformers_loop(config, model, AdamW(model.parameters(), lr=config.optimizer.lr))


def transformers_fused(config: RunConfig) -> Loop:
    """transformers' GPT-2 with torch's fused AdamW."""
    model = transformers_model(config)
    return transformers_loop(config, model, AdamW(model.parameters(), lr=config.optimizer.lr, fused=True))


def transformers_loop(config: RunConfig, model: GPT2LMHeadModel, optimizer: Optimizer) -> Loop:
    """Its own loss, over the same targets; the cache of keys and values, no use in training, is off."""

    def objective(inputs: Tensor, targets: Tensor) -> Tensor:
        return model(inputs, labels=targets, shift_labels=targets, use_cache=False).loss

    return Loop(config, model, objective, optimizer)


def transformers_model(config: RunConfig) -> GPT2LMHeadModel:
    """The same shape and weights; its linear maps hold ``[in, out]``."""
    m = config.model
    shape = {"n_layer": m.n_layer, "n_head": m.n_head, "n_embd": m.n_embd, "n_positions": m.block_size}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), m.dropout)
    words = {"vocab_size": m.vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **words, **dropout, attn_implementation="sdpa"))
    ours = fresh_decoder(config).state_dict()
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parameter.copy_(ours[name].T if parameter.ndim == 2 and name.startswith("h.") else ours[name])
    return model.to(device_of(config)).train()


def textbook(config: RunConfig) -> Loop:
    """The textbook's GPT-2 and optimizer: fused AdamW; matrices and embeddings decay, the rest does not."""
    model = TextbookGPT(config.model)
    model.load_state_dict(fresh_decoder(config).state_dict())
    model.to(device_of(config))
    decayed = {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1}
    others = {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}
    return Loop(config, model, model, AdamW([decayed, others], lr=config.optimizer.lr, betas=(0.9, 0.95), fused=True))


class TextbookAttention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class TextbookMLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class TextbookBlock(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn, self.mlp = TextbookAttention(config), TextbookMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TextbookGPT(nn.Module):
    """GPT-2 as it is usually taught (the form of karpathy/nanoGPT): all logits at once, then torch's cross-entropy."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(TextbookBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


PEERS: dict[str, Callable[[RunConfig], Loop]] = {
    "plain": plain,
    "transformers": transformers,
    "transformers_fused": transformers_fused,
    "textbook": textbook,
}
