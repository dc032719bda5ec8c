"""The decoder is GPT-2: sizes, causality, initialisation, and agreement with another implementation."""

import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from gpt2_lightning.config import compose_config
from gpt2_lightning.decoder import Decoder, DecoderConfig, causal_products
from gpt2_lightning.loss import cross_entropy

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48, "vocab_size": 101}
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def reference(config: DecoderConfig) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.block_size,
            vocab_size=config.vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def same_weights(decoder: Decoder, theirs: nn.Module) -> None:
    """Copy ours into theirs; their linear maps are stored the other way around."""
    state = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            state[f"transformer.{name}"].copy_(p.T if name.endswith(LINEAR) else p)


def randomise(decoder: Decoder) -> None:
    """Biases and norms away from 0 and 1, so that nothing hides behind them."""
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.05 * torch.randn_like(p))


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt2", 124_439_808), ("gpt2_medium", 354_823_168), ("gpt2_large", 774_030_080), ("gpt2_xl", 1_557_611_200)],
)
def test_published_sizes(name: str, count: int) -> None:
    config = compose_config([f"model={name}", "data=shakespeare_bpe"]).model
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(config).parameters()) == count


def test_logits_equal_transformers() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SMALL)).eval()
    randomise(decoder)
    theirs = reference(decoder.config).eval()
    same_weights(decoder, theirs)
    tokens = torch.randint(0, 101, (2, 48))
    torch.testing.assert_close(decoder(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_gradients_of_twenty_steps_equal_transformers() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SMALL)).double()
    theirs = reference(decoder.config).double()
    same_weights(decoder, theirs)

    ours_step = torch.optim.AdamW(decoder.parameters(), lr=1e-3, fused=True)
    their_step = torch.optim.AdamW(theirs.parameters(), lr=1e-3, foreach=False)
    parameters = dict(theirs.named_parameters())
    for _ in range(20):
        tokens = torch.randint(0, 101, (2, 33))
        x, y = tokens[:, :-1], tokens[:, 1:]
        ours_step.zero_grad()
        cross_entropy(decoder.hidden(x), decoder.wte.weight, y)[0].backward()
        their_step.zero_grad()
        F.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten()).backward()
        for name, p in decoder.named_parameters():
            theirs_grad = parameters[f"transformer.{name}"].grad
            expected = theirs_grad.T if name.endswith(LINEAR) else theirs_grad
            torch.testing.assert_close(p.grad, expected, atol=1e-12, rtol=1e-7, msg=name)
        ours_step.step()
        their_step.step()


@pytest.mark.parametrize("options", [{}, {"attention_window": 7}, {"norm": "post"}])
def test_a_later_token_changes_no_earlier_logit(options: dict) -> None:
    decoder = Decoder(DecoderConfig(**SMALL, **options)).eval()
    randomise(decoder)
    tokens = torch.randint(0, 101, (1, 48))
    changed = tokens.clone()
    changed[0, 30] = (changed[0, 30] + 1) % 101
    before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


def test_a_window_reaches_n_layer_times_its_length_and_no_further() -> None:
    decoder = Decoder(DecoderConfig(**SMALL, attention_window=5)).eval()
    randomise(decoder)
    reach = 3 * (5 - 1)
    tokens = torch.randint(0, 101, (1, 48))
    for distance, seen in ((reach, True), (reach + 1, False)):
        changed = tokens.clone()
        changed[0, 40 - distance] = (changed[0, 40 - distance] + 1) % 101
        assert torch.equal(decoder(tokens)[0, 40], decoder(changed)[0, 40]) is not seen


def test_a_window_as_long_as_the_context_is_global() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SMALL)).eval()
    windowed = Decoder(DecoderConfig(**SMALL, attention_window=48)).eval()
    windowed.load_state_dict(decoder.state_dict())
    tokens = torch.randint(0, 101, (1, 48))
    assert torch.equal(decoder(tokens), windowed(tokens))


@pytest.mark.parametrize("T", [2, 255, 256, 257, 600])
def test_attention_by_plain_products_is_attention(T: int) -> None:
    q, k, v = (torch.randn(2, 3, T, 16, requires_grad=True) for _ in range(3))
    ours, torchs = causal_products(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(ours, torchs, atol=1e-5)
    weight = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (ours, torchs)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_bf16_on_a_cpu_attends_by_plain_products_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, seen = Decoder(DecoderConfig(**SMALL)).h[0].attn, []
    monkeypatch.setattr("gpt2_lightning.decoder.causal_products", lambda *qkv: seen.append(1) or causal_products(*qkv))
    x = torch.randn(2, 48, 64)
    exact = attention(x, None, None)
    assert not seen
    with torch.autocast("cpu", torch.bfloat16):
        near = attention(x, None, None)
        assert seen == [1]
        monkeypatch.setattr("gpt2_lightning.decoder.MOST_WEIGHTS", 2 * 4 * 48 * 48 - 1)
        fused = attention(x, None, None)
    assert seen == [1]
    assert torch.allclose(exact, near.float(), atol=0.02)
    assert torch.allclose(fused.float(), near.float(), atol=0.02)


def test_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(n_layer=8, n_head=4, n_embd=256, block_size=64, vocab_size=1000))
    for name, p in decoder.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif "ln_" in name:
            assert (p == 1).all()
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05)
            assert abs(p.mean().item()) < 4 * std / math.sqrt(p.numel())


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SMALL))
    tokens = torch.randint(0, 101, (8, 49))
    loss = F.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(101), abs=0.1)


def test_too_long_an_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="at most block_size = 48 long, got 49"):
        Decoder(DecoderConfig(**SMALL))(torch.zeros(1, 49, dtype=torch.long))


def test_documents_in_one_row_are_as_if_each_had_its_own() -> None:
    decoder = Decoder(DecoderConfig(**SMALL, document_mask=True)).eval()
    plain = Decoder(DecoderConfig(**SMALL)).eval()
    randomise(decoder)
    plain.load_state_dict(decoder.state_dict())
    documents = [torch.cat([torch.randint(0, 100, (n,)), torch.tensor([100])]) for n in (9, 1, 20)]
    logits = decoder(torch.cat(documents)[None])[0]
    alone = torch.cat([plain(document[None])[0] for document in documents])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, plain(torch.cat(documents)[None])[0], atol=1e-3)


def test_a_window_and_documents_narrow_each_other() -> None:
    decoder = Decoder(DecoderConfig(**SMALL, document_mask=True, attention_window=5)).eval()
    randomise(decoder)
    tokens = torch.randint(0, 100, (1, 40))
    tokens[0, 20] = 100
    for place, seen in ((19, False), (21, False), (30, True)):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 100
        assert torch.equal(decoder(tokens)[0, 35], decoder(changed)[0, 35]) is not seen
