"""A draw depends on the seed and its number alone; each document comes once an epoch, each corpus by its weight."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lightning.data.chance import keyed_hash, keyed_permutation
from gpt2_lightning.data.mixture import BLOCK, Draw, Mixture, quotas


def draws(mixture: Mixture, n: int, start: int = 0) -> list[Draw]:
    found = [mixture.draw(g) for g in range(start, start + n)]
    return [draw for draw in found if draw is not None]


def test_a_hash_is_uniform_and_depends_on_every_part_and_their_order() -> None:
    hashes = [keyed_hash(7, n) for n in range(4000)]
    assert len(set(hashes)) == 4000
    for bit in range(64):
        assert abs(sum(h >> bit & 1 for h in hashes) - 2000) < 200
    assert keyed_hash(1, 2) != keyed_hash(2, 1) != keyed_hash(2, 1, 0) != keyed_hash(2)


def test_the_published_stream_of_splitmix64() -> None:
    assert keyed_hash(0) == 0xE220A8397B1DCDAF  # its first output from the state 0 (Vigna's reference, seed 0)


@given(n=st.integers(0, 300), key=st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_a_permutation_holds_every_number_once(n: int, key: int) -> None:
    assert sorted(keyed_permutation(n, key).tolist()) == list(range(n))


def test_permutations_are_shuffled_evenly() -> None:
    first = Counter(int(keyed_permutation(5, key)[0]) for key in range(2000))
    assert all(abs(count - 400) < 80 for count in first.values())


@pytest.mark.parametrize("window", [1, 7, 10, 1000])
@pytest.mark.parametrize("sizes", [[10], [13, 5], [100, 1, 37]])
def test_every_document_comes_exactly_once_an_epoch(sizes: list[int], window: int) -> None:
    mixture = Mixture(sizes, [1.0] * len(sizes), [None] * len(sizes), seed=3, window=window)
    ledger = Counter(draws(mixture, 3 * BLOCK))
    assert set(ledger.values()) == {1}
    for corpus, size in enumerate(sizes):
        epochs = sorted({draw.epoch for draw in ledger if draw.corpus == corpus})
        assert epochs == list(range(len(epochs)))
        for epoch in epochs[:-1]:
            assert sorted(d.document for d in ledger if d[:2] == (corpus, epoch)) == list(range(size))


def test_any_place_can_be_asked_for_in_any_order() -> None:
    mixture = Mixture([50, 20], [1.0, 2.0], [None, None], seed=1)
    straight = draws(mixture, 10_000)
    other = Mixture([50, 20], [1.0, 2.0], [None, None], seed=1)
    for g in (9_999, 0, 5_000, 4_096, 4_095, 1):
        assert other.draw(g) == straight[g]
    assert other.draw(10**12) == mixture.draw(10**12)
    assert draws(Mixture([50, 20], [1.0, 2.0], [None, None], seed=2), 100) != straight[:100]


def test_the_seed_decides_the_order_of_one_corpus_too() -> None:
    one, other = (draws(Mixture([50], [1.0], [None], seed=seed), 50) for seed in (1, 2))
    assert one != other
    assert sorted(one) == sorted(other)


def test_windows_keep_the_order_apart_and_one_is_the_stored_order() -> None:
    order = [d.document for d in draws(Mixture([20], [1.0], [None], seed=0, window=5), 20)]
    assert [sorted(order[i : i + 5]) for i in range(0, 20, 5)] == [list(range(i, i + 5)) for i in range(0, 20, 5)]
    assert order != list(range(20))
    assert [d.document for d in draws(Mixture([20], [1.0], [None], seed=0, window=1), 20)] == list(range(20))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.2, 0.1], [5.0, 0.0, 3.0], [0.85, 0.1499, 0.0001]])
def test_shares_of_ten_thousand_draws_are_the_weights(weights: list[float]) -> None:
    mixture = Mixture([100] * len(weights), weights, [None] * len(weights), seed=0)
    counts = Counter(draw.corpus for draw in draws(mixture, 10_000))
    for corpus, weight in enumerate(weights):
        assert counts[corpus] / 10_000 == pytest.approx(weight / sum(weights), abs=0.015)
        assert (counts[corpus] > 0) is (weight > 0)


@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(any))
@settings(max_examples=100)
def test_quotas_fill_a_block(weights: list[float]) -> None:
    quota = quotas(weights)
    assert sum(quota) == BLOCK
    assert all((q > 0) is (w > 0) for q, w in zip(quota, weights, strict=True))


def test_a_finite_corpus_ends_and_the_others_take_its_draws() -> None:
    mixture = Mixture([10, 500], [1.0, 1.0], [2, None], seed=0)
    found = draws(mixture, 4 * BLOCK)
    ended = [draw for draw in found if draw.corpus == 0]
    assert Counter(draw.document for draw in ended) == dict.fromkeys(range(10), 2)
    assert mixture.end is None
    assert all(mixture.draw(g) is not None for g in range(BLOCK, 4 * BLOCK))
    other = Counter((draw.epoch, draw.document) for draw in found if draw.corpus == 1)
    assert set(other.values()) == {1}


def test_when_all_have_ended_there_is_nothing_more() -> None:
    mixture = Mixture([3000, 9000], [1.0, 1.0], [1, 1], seed=0)
    assert mixture.end is not None
    assert set(Counter(draws(mixture, mixture.end)).values()) == {1}
    assert len(draws(mixture, mixture.end)) == 12_000
    assert mixture.draw(mixture.end) is None
    assert mixture.draw(10**9) is None


def test_it_goes_to_another_process_and_draws_the_same() -> None:
    import pickle

    mixture = Mixture([50, 20], [1.0, 2.0], [None, 3], seed=1, window=7)
    assert draws(pickle.loads(pickle.dumps(mixture)), 500) == draws(mixture, 500)


def test_a_corpus_of_a_million_documents_costs_one_permutation() -> None:
    mixture = Mixture([3_000_000], [1.0], [None], seed=0)
    found = np.array([mixture.draw(g).document for g in range(1_048_576, 1_048_576 + 1000)])
    assert mixture.permutations[0].cache_info().misses == 1
    assert found.min() >= 1_048_576
    assert found.max() < 2 * 1_048_576
