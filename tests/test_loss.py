"""The loss is exact: cross-entropy in chunks, the norm in closed form."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.loss import (
    IGNORED,
    LossConfig,
    add_penalty_gradient,
    cross_entropy,
    log_probabilities,
    loss_terms,
    parameter_norm,
    token_losses,
)


def head(n: int = 37, width: int = 16, words: int = 101) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, words, (n,))
    targets[::5] = IGNORED
    return torch.randn(n, width, requires_grad=True), torch.randn(words, width, requires_grad=True), targets


@pytest.mark.parametrize("chunk", [0, 1, 7, 37, 1000])
def test_chunks_change_neither_the_loss_nor_its_gradients(chunk: int) -> None:
    x, w, y = head()
    expected = F.cross_entropy(x @ w.T, y, ignore_index=IGNORED)
    dx, dw = torch.autograd.grad(3 * expected, (x, w))
    loss, per_token = cross_entropy(x, w, y, chunk)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(w.grad, dw, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(per_token, F.cross_entropy(x @ w.T, y, ignore_index=IGNORED, reduction="none"))


def test_ignored_targets_carry_no_loss_and_no_gradient() -> None:
    x, w, y = head()
    cross_entropy(x, w, y)[0].backward()
    assert not x.grad[::5].any()
    assert x.grad[1::5].any()


def test_weights_make_it_a_weighted_mean() -> None:
    x, w, y = head()
    weights = torch.rand(37)
    losses = F.cross_entropy(x @ w.T, y, ignore_index=IGNORED, reduction="none")
    expected = (losses * weights).sum() / weights[y != IGNORED].sum()
    dx, dw = torch.autograd.grad(expected, (x, w))
    loss, per_token = cross_entropy(x, w, y, 10, weights)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(per_token, losses)
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(w.grad, dw, rtol=1e-4, atol=1e-7)
    assert cross_entropy(x, w, y, 0, torch.zeros(37))[0].item() == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_where_few_targets_count_the_head_works_on_them_alone_with_the_same_result(weighted: bool) -> None:
    x, w, y = head()
    y[torch.arange(37) % 7 != 2] = IGNORED
    weights = torch.rand(37) if weighted else None
    losses = F.cross_entropy(x @ w.T, y, ignore_index=IGNORED, reduction="none")
    share = torch.where(y == IGNORED, 0.0, 1.0 if weights is None else weights)
    expected = (losses * share).sum() / share.sum()
    dx, dw = torch.autograd.grad(expected, (x, w))
    loss, per_token = cross_entropy(x, w, y, 2, weights)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(per_token, losses)
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(w.grad, dw, rtol=1e-4, atol=1e-7)
    nats, hits = token_losses(x, w, y, chunk_tokens=2)
    torch.testing.assert_close(nats, losses)
    assert torch.equal(hits[y != IGNORED], ((x @ w.T).argmax(-1) == y)[y != IGNORED]) and not hits[y == IGNORED].any()


def test_all_targets_ignored_is_zero_not_nan() -> None:
    x, w, y = head()
    loss, _ = cross_entropy(x, w, torch.full_like(y, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_evaluation_gives_the_same_losses_and_the_hits() -> None:
    x, w, y = head()
    losses, hits = token_losses(x, w, y, chunk_tokens=10)
    torch.testing.assert_close(losses, cross_entropy(x, w, y)[1])
    assert torch.equal(hits, (x @ w.T).argmax(-1) == y)


def test_padding_of_the_vocabulary_changes_no_probability() -> None:
    logits = torch.randn(5, 128)
    padded = log_probabilities(logits.clone(), 101)
    torch.testing.assert_close(padded[:, :101], F.log_softmax(logits[:, :101], -1))
    assert not padded[:, 101:].exp().any()


def test_bf16_autocast_stays_near_float32() -> None:
    x, w, y = head()
    exact = cross_entropy(x, w, y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = cross_entropy(x, w, y)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()


def test_no_gradient_reaches_the_per_token_losses() -> None:
    x, w, y = head()
    assert not cross_entropy(x, w, y)[1].requires_grad


@pytest.fixture(scope="module")
def gpt2() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig())


def test_norm_at_124m_is_within_1e6_of_float64(gpt2: Decoder) -> None:
    exact = sum(p.detach().double().square().sum() for p in gpt2.parameters()).sqrt().item()
    assert parameter_norm(gpt2.parameters()).item() == pytest.approx(exact, rel=1e-6)


def test_penalty_gradient_at_124m_is_within_1e6_of_float64(gpt2: Decoder) -> None:
    beta = 0.37
    exact = sum(p.detach().double().square().sum() for p in gpt2.parameters()).sqrt()
    gpt2.zero_grad()
    add_penalty_gradient(gpt2.parameters(), beta)
    error = sum((p.grad.double() - beta * p.detach().double() / exact).square().sum() for p in gpt2.parameters()).sqrt()
    gpt2.zero_grad()
    assert error.item() < 1e-6 * beta  # the exact gradient has norm beta


def test_closed_form_equals_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    x = torch.randn(4, 5, dtype=torch.double)
    norm = torch.cat([p.flatten() for p in model.parameters()]).norm()
    expected = torch.autograd.grad(model(x).square().mean() + 0.1 * norm, list(model.parameters()))
    model(x).square().mean().backward()
    assert add_penalty_gradient(model.parameters(), 0.1).item() == pytest.approx(norm.item())
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_at_zero_the_penalty_is_finite_and_its_gradient_zero() -> None:
    p = nn.Parameter(torch.zeros(3, 3))
    p.grad = torch.ones(3, 3)
    assert add_penalty_gradient([p], 1.0).item() == 0
    assert torch.equal(p.grad, torch.ones(3, 3))


def test_a_shared_tensor_counts_once_and_a_frozen_one_not_at_all() -> None:
    p, frozen = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.ones(5), requires_grad=False)
    assert add_penalty_gradient([p, p, frozen], 1.0).item() == pytest.approx(4.0)
    torch.testing.assert_close(p.grad, torch.full((2, 2), 0.5))
    assert frozen.grad is None


def test_without_beta_the_total_is_the_cross_entropy_itself() -> None:
    ce, norm = torch.tensor(1.5), torch.tensor(torch.inf)
    assert loss_terms(ce, norm, LossConfig()).total is ce
    assert loss_terms(ce, torch.tensor(2.0), LossConfig(beta=0.25)).total.item() == 2.0


def test_a_sum_over_more_than_counts_is_the_mean_scaled_also_in_half_precision() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4096, 16), torch.randn(512, 16) * 0.02
    targets = torch.where(torch.rand(4096) < 0.6, torch.randint(512, (4096,)), IGNORED)
    counted = int((targets != IGNORED).sum())

    def gradients(dtype: torch.dtype, over: float | None, scale: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, _ = cross_entropy(x, w, targets, over=over)
        (loss * scale).backward()
        assert x.grad is not None and w.grad is not None
        return x.grad, w.grad, loss.item() * scale

    for dtype in (torch.float32, torch.float16):
        mean, summed = (gradients(dtype, over, scale) for over, scale in ((None, 1.0), (2.0**20, 2.0**20 / counted)))
        torch.testing.assert_close(summed[0], mean[0])
        torch.testing.assert_close(summed[1], mean[1])
        assert summed[2] == pytest.approx(mean[2])
