"""Lanes pack every token once, and go on from any place as if they had never stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lightning.data.lanes import EndOfStream, Lane, Passage, Rows
from gpt2_lightning.loss import IGNORED

END = 999


def reader(lengths: list[int], labels: bool = False, end: int | None = None):
    """Passages of unique tokens, end-of-text behind each; draws of length 0 have none."""
    starts = np.cumsum([0, *lengths])

    def read(g: int) -> Passage | None:
        if end is not None and g >= end:
            raise EndOfStream
        n = lengths[g % len(lengths)]
        tokens = np.append(np.arange(n) + starts[g % len(lengths)], END).astype(np.int32)
        own = np.where(tokens % 3 == 0, IGNORED, tokens + 10_000).astype(np.int32) if labels and g % 2 else None
        return Passage(tokens, own, corpus=g % 2) if n else None

    return read


def fill(lane: Lane, n: int, block_size: int = 8, several: bool = False) -> Rows:
    rows = Rows(n, block_size, several)
    for j in range(n):
        lane.fill(rows, j)
    return rows


def test_every_token_of_a_lane_is_a_target_once_in_order() -> None:
    rows = fill(Lane(reader([5, 0, 30, 12, 1, 9]), 0, 1, END), 7)
    targets = rows.tokens[:, 1:].ravel()
    assert targets[targets != END].tolist() == list(range(len(targets[targets != END])))
    assert rows.tokens[0, 0] == END
    assert np.array_equal(rows.tokens[1:, 0], rows.tokens[:-1, -1])
    assert rows.labels is rows.tokens


def test_lanes_share_the_draws_out() -> None:
    seen = np.concatenate([fill(Lane(reader([7] * 60), r, 3, END), 20).tokens[:, 1:].ravel() for r in range(3)])
    tokens = seen[seen != END]
    assert sorted(tokens.tolist()) == sorted(set(tokens.tolist()))
    assert len(tokens) > 400


@pytest.mark.parametrize("labels", [False, True])
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), stop=st.integers(0, 30))
@settings(max_examples=60)
def test_a_lane_goes_on_from_its_place(labels: bool, lengths: list[int], stop: int) -> None:
    straight = (
        fill(Lane(reader(lengths, labels), 1, 2, END), 31, several=True) if any(lengths[1::2]) or len(lengths) % 2 else None
    )
    if straight is None:
        return
    lane = Lane(reader(lengths, labels), 1, 2, END)
    fill(lane, stop)
    rest = fill(Lane(reader(lengths, labels), 1, 2, END, lane.draw, lane.offset), 31 - stop, several=True)
    assert np.array_equal(rest.tokens, straight.tokens[stop:])
    assert np.array_equal(rest.labels[:, 1:], straight.labels[stop:, 1:])
    assert np.array_equal(rest.corpora[:, 1:], straight.corpora[stop:, 1:])


def test_labels_stay_with_their_tokens() -> None:
    rows = fill(Lane(reader([5, 6, 7], labels=True), 0, 1, END), 9)
    tokens, labels = rows.tokens[:, 1:].ravel(), rows.labels[:, 1:].ravel()
    own = (tokens != labels) & (labels != IGNORED)
    assert own.any()
    assert np.array_equal(labels[own], tokens[own] + 10_000)
    assert (tokens[labels == IGNORED] % 3 == 0).all()


def test_corpora_stay_with_their_tokens() -> None:
    rows = fill(Lane(reader([5, 6]), 0, 1, END), 4, several=True)
    expected = [0] * 6 + [1] * 7
    assert rows.corpora[:, 1:].ravel().tolist() == (expected * 3)[:32]
    assert rows.counts == {"documents": 5, "corpus/0": 3, "corpus/1": 2}


def test_at_the_end_the_rest_predicts_nothing() -> None:
    rows = fill(Lane(reader([5, 6], end=2), 0, 1, END), 3)
    assert (rows.labels[:, 1:].ravel()[:13] == rows.tokens[:, 1:].ravel()[:13]).all()
    assert (rows.labels[:, 1:].ravel()[13:] == IGNORED).all()
    assert rows.counts["ended"] == 2


def test_records_begin_and_end_in_one_row_and_the_rest_is_padded() -> None:
    lane = Lane(reader([3, 2, 5, 12]), 0, 1, END, records=True)
    rows = fill(lane, 4)
    assert rows.tokens[:, 1:].tolist() == [
        [0, 1, 2, END, 3, 4, END, END],
        [5, 6, 7, 8, 9, END, END, END],
        [10, 11, 12, 13, 14, 15, 16, 17],  # cut
        [0, 1, 2, END, 3, 4, END, END],
    ]
    assert rows.labels[:, 1:].tolist() == [
        [0, 1, 2, END, 3, 4, END, IGNORED],
        [5, 6, 7, 8, 9, END, IGNORED, IGNORED],
        [10, 11, 12, 13, 14, 15, 16, 17],
        [0, 1, 2, END, 3, 4, END, IGNORED],
    ]
    assert (rows.tokens[:, 0] == END).all()
    again = fill(Lane(reader([3, 2, 5, 12]), 0, 1, END, 3, 0, records=True), 1)
    assert np.array_equal(again.tokens, rows.tokens[2:3])
