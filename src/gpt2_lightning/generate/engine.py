"""Generation: prompt tokens in, continuation out, one token at a time from the last ``block_size`` tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.generate.sampler import candidates, probabilities
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["SamplerConfig", "continue_tokens", "top_k_probabilities"]


def top_k_probabilities(
    logits: Float[Tensor, "B V"], config: SamplerConfig, history: Int[Tensor, "B T"] | None = None
) -> Float[Tensor, "B V"]:
    """The sampler's distribution over the whole vocabulary."""
    found = candidates(logits, config, history)
    p = probabilities(found, config)
    return torch.zeros_like(logits, dtype=p.dtype).scatter_(-1, found.tokens, p)


@torch.no_grad()
def continue_tokens(
    decoder: Decoder, prompt: Int[Tensor, "B T"], max_new_tokens: int, config: SamplerConfig, generator: torch.Generator
) -> Int[Tensor, "B T_new"]:
    """The prompt and ``max_new_tokens`` more tokens, ``[B, T + max_new_tokens]``; dropout is off meanwhile."""
    was_training = decoder.training
    decoder.eval()
    tokens = prompt
    for _ in range(max_new_tokens):
        logits = decoder(tokens[:, -decoder.config.block_size :])[:, -1]
        p = top_k_probabilities(logits, config, tokens).cpu()
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator).to(tokens.device)], dim=1)
    decoder.train(was_training)
    return tokens
