"""The samplers against transformers' processors, their own formulas, and the distribution that is drawn from."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2_lightning.config import compose_config, group_options
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.generation.sampler import (
    CHUNK,
    Candidates,
    candidates,
    draw,
    entropy,
    penalise,
    probabilities,
    prompt_keys,
    top_k,
    uniforms,
)
from gpt2_lightning.settings.sampler import SamplerConfig

OPTIONS = sorted(set(group_options("sampler")) - {"beam"})
EXTRA = {
    "uniform": SamplerConfig(draw="uniform"),
    "uniform_threshold": SamplerConfig(epsilon=0.3, draw="uniform"),
    "threshold_without_k": SamplerConfig(k=None, epsilon=0.05, tau=0.5),
    "all": SamplerConfig(k=8, temperature=1.3, epsilon=0.05, tau=2.0, p=0.95, min_p=0.02, typical=0.9),
}
PENALTIES = SamplerConfig(repetition_penalty=1.3, no_repeat_ngram=2)


def option(name: str) -> SamplerConfig:
    return EXTRA[name] if name in EXTRA else compose_config([f"sampler={name}"]).sampler


def whole(found: Candidates, p: Tensor, V: int) -> Tensor:
    """What is said of the candidates, as a row over the vocabulary."""
    return torch.zeros(len(p), V, dtype=p.dtype).scatter(1, found.tokens, p)


def random_logits(B: int, V: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(B, V, generator=torch.Generator().manual_seed(seed)) * scale


def random_uniforms(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PEERS: list[tuple[SamplerConfig, list[LogitsProcessor]]] = [
    (SamplerConfig(k=None), []),
    (SamplerConfig(k=None, temperature=0.7), [TemperatureLogitsWarper(0.7)]),
    (SamplerConfig(k=3), [TopKLogitsWarper(3)]),
    (SamplerConfig(k=20, temperature=1.5), [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20)]),
    (SamplerConfig(k=None, p=0.9), [TopPLogitsWarper(0.9)]),
    (SamplerConfig(k=None, p=0.01), [TopPLogitsWarper(0.01)]),
    (SamplerConfig(k=None, p=1.0), [TopPLogitsWarper(1.0)]),
    (SamplerConfig(k=None, p=0.5, temperature=2.0), [TemperatureLogitsWarper(2.0), TopPLogitsWarper(0.5)]),
    (SamplerConfig(k=None, min_p=0.1), [MinPLogitsWarper(0.1)]),
    (SamplerConfig(k=None, min_p=1.0), [MinPLogitsWarper(1.0)]),
    (SamplerConfig(k=None, typical=0.9), [TypicalLogitsWarper(0.9)]),
    (SamplerConfig(k=None, typical=0.2), [TypicalLogitsWarper(0.2)]),
    (SamplerConfig(k=15, p=0.8), [TopKLogitsWarper(15), TopPLogitsWarper(0.8)]),
    (SamplerConfig(k=None, p=0.8, min_p=0.2), [TopPLogitsWarper(0.8), MinPLogitsWarper(0.2)]),
    (SamplerConfig(k=15, typical=0.7), [TopKLogitsWarper(15), TypicalLogitsWarper(0.7)]),
    (SamplerConfig(k=None, p=0.9, typical=0.7), [TopPLogitsWarper(0.9), TypicalLogitsWarper(0.7)]),
    (
        SamplerConfig(k=30, temperature=0.9, p=0.95, min_p=0.03, typical=0.9, repetition_penalty=1.2, no_repeat_ngram=2),
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            NoRepeatNGramLogitsProcessor(2),
            TemperatureLogitsWarper(0.9),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.03),
            TypicalLogitsWarper(0.9),
        ],
    ),
]


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (5, 257), (2, 4001)])
@pytest.mark.parametrize("case", range(len(PEERS)))
def test_support_and_probabilities_are_those_of_transformers(case: int, shape: tuple[int, int]) -> None:
    config, processors = PEERS[case]
    B, V = shape
    for seed in range(5):
        logits = random_logits(B, V, seed, scale=1.0 + seed)
        history = torch.randint(V, (B, 3 + seed), generator=torch.Generator().manual_seed(seed))
        wanted = logits
        for processor in processors:
            wanted = processor(history, wanted)  # type: ignore[arg-type]
        if wanted.isneginf().all(-1).any():
            continue  # every token banned: transformers has nothing left to draw
        found = candidates(logits, config, history)
        kept = whole(found, found.logits > -math.inf, V)
        assert kept.equal(~wanted.isneginf())
        torch.testing.assert_close(whole(found, probabilities(found, config), V), wanted.softmax(-1))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 12, 13])
@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_repetition_counts_as_in_transformers(n: int, penalty: float) -> None:
    config = SamplerConfig(repetition_penalty=penalty, no_repeat_ngram=n)
    for seed in range(20):
        logits = random_logits(4, 11, seed)
        history = torch.randint(5, (4, 12), generator=torch.Generator().manual_seed(seed))
        wanted = RepetitionPenaltyLogitsProcessor(penalty)(history, logits)  # type: ignore[arg-type]
        wanted = NoRepeatNGramLogitsProcessor(n)(history, wanted) if n else wanted  # type: ignore[arg-type]
        assert penalise(logits, config, history).equal(wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_padding_never_counts_as_text(n: int) -> None:
    config = SamplerConfig(repetition_penalty=1.5, no_repeat_ngram=n)
    texts = [[0, 1, 0, 1, 0, 1, 2], [0], [], [2, 2], [1, 0, 0, 1, 0]]
    logits = random_logits(len(texts), 6)
    padded = torch.tensor([[-1] * (9 - len(text)) + text for text in texts])
    together = penalise(logits, config, padded)
    for row, text in enumerate(texts):
        alone = torch.tensor([text], dtype=torch.long)
        assert together[row : row + 1].equal(penalise(logits[row : row + 1], config, alone))
    assert together[2].equal(logits[2])
    assert not together[0].equal(logits[0])


def test_a_row_whose_every_token_is_banned_keeps_them_all() -> None:
    history = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0]])
    found = candidates(random_logits(2, 3), SamplerConfig(k=None, no_repeat_ngram=1), history)
    assert (found.logits > -math.inf).tolist() == [[True, True, True], [False, True, True]]


@pytest.mark.parametrize("V", [5, 100, 3000, 50257])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_top_k_breaks_ties_by_the_lower_token_and_keeps_k(V: int, values: int) -> None:
    generator = torch.Generator().manual_seed(V)
    logits = torch.randint(values, (2, V), generator=generator).float() - values // 2
    logits[1, ::7] = -math.inf
    logits[:, 1::5] *= -1  # makes -0.0, which equals 0.0
    for k in (1, 2, 10, 50, V // 2, V, V + 3):
        found = top_k(logits, k)
        for row in range(2):
            wanted = sorted(range(V), key=lambda token, row=row: (-logits[row, token].item(), token)) if V < 5000 else None
            if wanted is None:
                wanted = logits[row].sort(descending=True, stable=True).indices.tolist()
            assert found.tokens[row].tolist() == wanted[:k]
        assert found.logits.equal(logits.gather(1, found.tokens))


def test_ties_at_the_edge_of_a_set_fall_to_the_lower_token() -> None:
    flat = torch.zeros(1, 8)
    for config, kept in (
        (SamplerConfig(k=3), 3),
        (SamplerConfig(k=None, p=0.5), 4),
        (SamplerConfig(k=None, typical=0.375), 3),
        (SamplerConfig(k=6, p=0.5), 3),
        (SamplerConfig(k=1), 1),
        (SamplerConfig(temperature=0.0, k=None), 1),
    ):
        found = candidates(flat, config)
        assert found.tokens[found.logits > -math.inf].tolist() == list(range(kept))


def test_bfloat16_logits_tie_and_are_drawn_in_float32() -> None:
    logits = random_logits(3, 1000).bfloat16()
    found = candidates(logits, SamplerConfig(k=40))
    assert found.tokens.equal(logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :40])
    assert probabilities(found, SamplerConfig(k=40)).dtype == torch.float32


@pytest.mark.parametrize("config", [SamplerConfig(k=1), SamplerConfig(temperature=0.0), SamplerConfig(temperature=0.0, k=None)])
def test_k_1_and_temperature_0_are_greedy_whatever_u(config: SamplerConfig) -> None:
    logits = random_logits(50, 301)
    for u in (torch.zeros(50, dtype=torch.float64), random_uniforms(50), torch.full((50,), 1 - 2.0**-53, dtype=torch.float64)):
        assert draw(candidates(logits, config), config, u).equal(logits.argmax(-1))


@pytest.mark.parametrize(
    ("p", "k", "epsilon", "tau", "kept"),
    [
        ([0.5, 0.2, 0.15, 0.1, 0.05], 5, 0.1, 1.0, [0, 1, 2, 3, 4]),  # thresholds 0.1, 0.01, 0.001, ...
        ([0.9, 0.09, 0.009, 0.0009, 0.0001], 5, 0.1, 1.0, [0, 1, 2, 3, 4]),
        ([0.98, 0.009, 0.008, 0.0015, 0.0015], 5, 0.1, 1.0, [0, 2, 3, 4]),  # a dropped rank between kept ones
        ([0.4, 0.24, 0.15, 0.11, 0.1], 5, 0.5, 1.0, [0, 2, 3, 4]),  # rank 0 is below its threshold, and stays
        ([0.4, 0.24, 0.15, 0.11, 0.1], 5, 0.5, 2.0, [0]),  # thresholds 0.71, 0.5, 0.35, 0.25, 0.18
        ([0.4, 0.24, 0.15, 0.11, 0.1], 5, 0.5, 0.5, [0, 1, 2, 3, 4]),  # thresholds 0.25, 0.06, ...
        ([0.3, 0.2, 0.2, 0.2, 0.1], 2, 0.5, 1.0, [0]),  # 0.2 of the vocabulary, though 0.4 of the two that k leaves
        ([0.5, 0.5], 2, 0.5, 2.0, [0]),  # rank 1 is at its threshold, not above
        ([0.3, 0.25, 0.2, 0.15, 0.1], None, 0.6, 1.0, [0, 3, 4]),
    ],
)
def test_the_rank_threshold_keeps_what_its_formula_says(
    p: list[float], k: int | None, epsilon: float, tau: float, kept: list[int]
) -> None:
    places = [3, 0, 4, 1, 2][: len(p)] if len(p) == 5 else [0, 1]  # the likeliest is not the first token
    logits = torch.full((1, len(p)), -math.inf)
    logits[0, places] = torch.tensor(p).log()
    for choose, weights in (("proportional", [p[i] for i in kept]), ("uniform", [1.0] * len(kept))):
        config = SamplerConfig(k=k, epsilon=epsilon, tau=tau, draw=choose)
        found = candidates(logits, config)
        wanted = torch.zeros(1, len(p))
        wanted[0, [places[i] for i in kept]] = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(whole(found, probabilities(found, config), len(p)), wanted)


def test_the_rank_threshold_reads_probabilities_after_temperature() -> None:
    logits = random_logits(20, 60)
    config = SamplerConfig(k=12, temperature=1.7, epsilon=0.55, tau=1.3)
    p = (logits.double() / 1.7).softmax(-1).sort(dim=-1, descending=True).values[:, :12]
    wanted = [[i == 0 or row[i] > 0.55 ** ((i + 1) / 1.3) for i in range(12)] for row in p.tolist()]
    assert (candidates(logits, config).logits > -math.inf).tolist() == wanted
    assert 12 < sum(map(sum, wanted)) < 240


def quantile(dof: int) -> float:
    """The chi-square that chance exceeds once in a million (Wilson and Hilferty 1931)."""
    return dof * (1 - 2 / (9 * dof) + 4.753 * math.sqrt(2 / (9 * dof))) ** 3


@pytest.mark.parametrize("name", [*OPTIONS, *EXTRA])
def test_draws_follow_the_renormalised_distribution(name: str) -> None:
    config, n, V = option(name), 100_000, 14
    logits = random_logits(1, V, seed=5, scale=1.2)
    found = candidates(logits, config)
    p = whole(found, probabilities(found, config), V)[0].double()
    scaled = (logits[0].double() / (config.temperature or 1)).exp()
    if config.draw == "proportional":
        torch.testing.assert_close(p, (scaled * (p > 0)) / (scaled * (p > 0)).sum(), rtol=1e-5, atol=0)
    drawn = draw(Candidates(*(x.expand(n, -1) for x in found)), config, random_uniforms(n))
    counts = drawn.bincount(minlength=V).double()
    assert counts[p == 0].sum() == 0
    counts, expected = counts[p > 0], n * p[p > 0]
    if len(counts) > 1:
        assert ((counts - expected) ** 2 / expected).sum() < quantile(len(counts) - 1)


@pytest.mark.parametrize("V", [10, CHUNK**2 - 1, CHUNK**2 + 1, 50257])
def test_a_draw_inverts_the_cumulative_distribution(V: int) -> None:
    config = SamplerConfig(k=None, min_p=1e-3)
    found = candidates(random_logits(64, V), config)
    p = probabilities(found, config).double()
    u = random_uniforms(64)
    wanted = torch.searchsorted(p.cumsum(-1), u[:, None] * p.sum(-1, keepdim=True), right=True)[:, 0]
    assert draw(found, config, u).equal(wanted)


@pytest.mark.parametrize("K", [2, 3, 63, 64, 65, 1000, CHUNK**2 + 70])
def test_a_dropped_token_is_never_drawn_not_even_at_the_edges(K: int) -> None:
    config, B = SamplerConfig(k=None), 40
    for seed in range(5):
        logits = random_logits(B, K, seed, scale=5.0)
        hole = torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) < 0.7
        hole[:, 0] = hole[:, -1] = True
        hole[torch.arange(B), torch.arange(B) % (K - 1)] = False
        found = Candidates(logits.masked_fill(hole, -math.inf), torch.arange(K).expand(B, K))
        p = probabilities(found, config)
        for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53, 1.0):  # 1.0: what a float32 makes of the number below it
            token = draw(found, config, torch.full((B,), u, dtype=torch.float64))
            assert (p[torch.arange(B), token] > 0).all()
            lowest, highest = (p > 0).byte().argmax(-1), K - 1 - (p > 0).flip(1).byte().argmax(-1)
            assert u > 0 or token.equal(lowest)
            assert (token <= highest).all()


def holed(B: int, K: int, seed: int = 0) -> Candidates:
    """Candidates of which seven in ten are dropped, the first of every chunk among them."""
    logits = random_logits(B, K, seed, scale=6.0)  # so wide that sums have to be rounded
    hole = torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) < 0.7
    hole[:, ::CHUNK] = True
    return Candidates(logits.masked_fill(hole, -math.inf), torch.arange(K).expand(B, K))


def test_a_draw_at_the_border_of_two_chunks_takes_a_kept_token() -> None:
    found, config = holed(8, CHUNK**2 + 70), SamplerConfig(k=None)
    p = probabilities(found, config)
    chunks = torch.nn.functional.pad(p, (0, -p.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK)).sum(-1).double()
    reached = chunks.cumsum(-1)
    borders = reached / reached[:, -1:]
    for border in borders.T:
        for u in (border, border.nextafter(torch.zeros(8).double()), border.nextafter(torch.ones(8).double())):
            token = draw(found, config, u)
            assert (p.gather(1, token[:, None]) > 0).all()


def test_cumulative_sums_that_go_down_in_the_last_bit_draw_no_dropped_token(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, generator = Tensor.cumsum, torch.Generator().manual_seed(0)

    def in_parallel(x: Tensor, dim: int) -> Tensor:
        wobble = torch.rand(x.shape, dtype=x.dtype, generator=generator) - 0.5
        return exact(x, dim) * (1 + 2.0**-30 * wobble)  # wider than a GPU's, so that chance meets it

    found, config = holed(1, 1000), SamplerConfig(k=None)
    p = probabilities(found, config)[0]
    borders = p.double().cumsum(-1)[p > 0]
    monkeypatch.setattr(Tensor, "cumsum", in_parallel)
    for _ in range(5):
        below = 1 - 2.0**-30 * torch.rand(len(borders), dtype=borders.dtype, generator=generator)
        token = draw(Candidates(*(x.expand(len(borders), -1) for x in found)), config, borders * below)
        assert (p[token] > 0).all()


def test_a_draw_at_float32_precision_still_stays_inside() -> None:
    found = candidates(random_logits(30, 500), SamplerConfig(k=7))
    token = draw(found, SamplerConfig(k=7), torch.full((30,), 1 - 2.0**-24, dtype=torch.float32))
    assert token.equal(found.tokens[:, -1])


@pytest.mark.parametrize("name", [*OPTIONS, *EXTRA])
@pytest.mark.parametrize("V", [257, 4200])
def test_a_rows_result_depends_on_that_row_alone(name: str, V: int) -> None:
    config, B = option(name), 100
    config = replace(config, repetition_penalty=1.1, no_repeat_ngram=2)
    logits = random_logits(B, V) * torch.linspace(0.1, 12, B)[:, None]  # from flat to peaked
    history = torch.randint(-1, 9, (B, 20), generator=torch.Generator().manual_seed(1))
    u = random_uniforms(B)
    found = candidates(logits, config, history)
    together = whole(found, probabilities(found, config), V)
    tokens = draw(found, config, u)
    for row in range(B):
        one = slice(row, row + 1)
        alone = candidates(logits[one], config, history[one])
        assert whole(alone, probabilities(alone, config), V).equal(together[one])
        assert draw(alone, config, u[one]).equal(tokens[one])


@pytest.mark.parametrize("name", [*OPTIONS, *EXTRA])
def test_no_sampler_waits_for_the_device(name: str) -> None:
    config = option(name)
    logits = torch.zeros(2, 5000, device="meta")  # has no values: reading one raises
    found = candidates(logits, config, torch.zeros(2, 7, dtype=torch.long, device="meta"))
    assert draw(found, config, random_uniforms(2)).shape == (2,)
    assert [part.shape for part in entropy(logits, found, config)] == [(2,), (2,)]


def test_extreme_settings_leave_a_distribution() -> None:
    logits = random_logits(3, 50, scale=30.0)
    logits[:, 4] = -math.inf
    history = torch.tensor([[1, 2, 3, 4, -1]] * 3)
    for extreme in (1e-320, 1e-40, 1e40, 1e308):
        for config in (
            SamplerConfig(temperature=extreme),
            SamplerConfig(temperature=extreme, k=None, p=0.9, min_p=1e-300, typical=0.5),
            SamplerConfig(repetition_penalty=extreme),
            SamplerConfig(epsilon=0.5, tau=extreme),
        ):
            p = probabilities(candidates(logits, config, history), config)
            assert p.isfinite().all()
            torch.testing.assert_close(p.sum(-1), torch.ones(3))


def test_entropies_are_those_of_the_two_distributions() -> None:
    flat = torch.zeros(2, 50)
    config = SamplerConfig(k=10)
    before, after = entropy(flat, candidates(flat, config), config)
    torch.testing.assert_close(before, torch.full((2,), math.log(50)))
    torch.testing.assert_close(after, torch.full((2,), math.log(10)))
    logits = random_logits(4, 30)
    config = SamplerConfig(k=None, temperature=0.5, p=0.8, repetition_penalty=2.0)
    found = candidates(logits, config, torch.tensor([[1, 2, 3]] * 4))
    before, after = entropy(logits, found, config)
    p, q = logits.double().softmax(-1), probabilities(found, config).double()
    torch.testing.assert_close(before.double(), -(p * p.log()).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.double(), -torch.where(q > 0, q * q.log(), 0).sum(-1), atol=1e-5, rtol=1e-5)
    uniform = SamplerConfig(k=10, draw="uniform")
    torch.testing.assert_close(entropy(logits, candidates(logits, uniform), uniform)[1], torch.full((4,), math.log(10)))


def test_a_prompts_key_is_its_own_whatever_the_batch_and_the_order() -> None:
    prompts = [[1, 2], [3], [1, 2], [], [1, 2], [2, 1], [3, 0]]
    keys = prompt_keys(7, prompts)
    assert len(set(keys)) == len(keys)
    assert prompt_keys(7, prompts[:3]) == keys[:3]
    assert prompt_keys(7, [[2, 1], [3]]) == [keys[5], keys[1]]
    assert sorted(prompt_keys(7, prompts[::-1])) == sorted(keys)
    assert prompt_keys(7, [[1, 2]] * 3) == [keys[0], keys[2], keys[4]]
    assert not set(prompt_keys(8, prompts)) & set(keys)


def test_uniforms_are_a_function_of_key_and_step() -> None:
    keys = prompt_keys(1337, [[n] for n in range(200)])
    steps = torch.stack([uniforms(keys, step) for step in range(100)])
    assert steps.dtype == torch.float64
    assert ((steps >= 0) & (steps < 1)).all()
    assert len(steps.unique()) == steps.numel()
    assert uniforms(keys[3:5], 9).equal(steps[9, 3:5])
    counts = (steps * 50).long().flatten().bincount(minlength=50).double()
    assert ((counts - 400) ** 2 / 400).sum() < quantile(49)
    for one, two in pairwise(steps):
        assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.4


def test_the_numbers_of_a_seed_stay_what_they_are() -> None:
    assert [f"{x:.6f}" for x in uniforms(prompt_keys(1337, [[464, 3290], [464, 3290]]), 3).tolist()] == ["0.684931", "0.048035"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"beams": 4, "p": 0.9},
            "sampler.p = 0.9.*no effect in beam search, sampler.beams = 4. Set sampler.beams=1, or sampler.p=null",
        ),
        ({"beams": 2, "draw": "uniform"}, "sampler.draw = uniform.*or sampler.draw=proportional"),
        ({"beams": 2, "epsilon": 0.1}, "sampler.epsilon = 0.1.*no effect"),
        ({"beams": 2, "min_p": 0.1}, "sampler.min_p = 0.1.*no effect"),
        ({"beams": 2, "typical": 0.1}, "sampler.typical = 0.1.*no effect"),
    ],
)
def test_a_filter_of_the_draw_and_a_beam_refuse_each_other(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({}, []),
        ({"beams": 4, "temperature": 0.0, "length_penalty": 0.6, "no_repeat_ngram": 3}, []),
        ({"epsilon": 0.1, "tau": 2.0}, []),
        ({"beams": 4, "temperature": 0.8}, ["sampler.temperature = 0.8 has no effect in beam search"]),
        ({"tau": 2.0}, ["sampler.tau = 2.0 has no effect without sampler.epsilon"]),
        ({"length_penalty": 0.6}, ["sampler.length_penalty = 0.6 has no effect with one beam"]),
    ],
)
def test_a_setting_without_effect_is_warned_of(settings: dict[str, object], warnings: list[str]) -> None:
    assert SamplerConfig(**settings).warnings == warnings  # type: ignore[arg-type]
