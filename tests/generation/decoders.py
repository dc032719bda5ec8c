"""Small decoders with random weights, the loops without a cache that they are compared with, and their transformers twins."""

import torch
import transformers
from torch import Tensor

from gpt2_lightning.decoder import Decoder, DecoderConfig

KINDS: list[dict] = [
    {},
    {"attention_window": 5},
    {"document_mask": True},
    {"norm": "post"},
    {"document_mask": True, "attention_window": 4},
]


def small(seed: int = 0, **options: object) -> Decoder:
    """Weights, biases and norms far enough from their start that no two tokens are alike."""
    torch.manual_seed(seed)
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 12, "vocab_size": 29, "init_std": 0.25, **options}
    decoder = Decoder(DecoderConfig(**settings)).eval()
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return decoder


def prompts_of(lengths: tuple[int, ...], vocab_size: int = 29, seed: int = 0) -> list[list[int]]:
    """Random tokens, end-of-text, the last of the vocabulary, at every fifth place."""
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(vocab_size - 1, (n,), generator=random) for n in lengths]
    return [[vocab_size - 1 if i % 5 == 3 else t for i, t in enumerate(row.tolist())] for row in rows]


@torch.no_grad()
def recomputed(
    decoder: Decoder, prompt: list[int], limit: int, slide_by: int = 1, end: int | None = None
) -> tuple[list[int], list[Tensor]]:
    """Greedy, the window read anew for every token; the logits of each step."""
    block_size, text, logits = decoder.config.block_size, list(prompt), []
    begin = 0
    for _ in range(limit):
        if len(text) - begin > block_size:
            begin = len(text) - (block_size + 1 - slide_by)
        logits.append(decoder(torch.tensor([text[begin:]]))[0, -1])
        text.append(int(logits[-1].argmax()))
        if text[-1] == end:
            break
    return text[len(prompt) :], logits


def twin(decoder: Decoder) -> transformers.GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights; end-of-text is the last token."""
    c, end = decoder.config, decoder.config.vocab_size - 1
    config = transformers.GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size, vocab_size=c.vocab_size,
        bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    own = decoder.state_dict()
    with torch.no_grad():
        for name, p in theirs.transformer.named_parameters():
            p.copy_(own[name].T if p.ndim == 2 and name.startswith("h.") else own[name])
    return theirs
