"""Which rows are continued and measured: always the same, whole ones alone, and never none without a word."""

import numpy as np
import pytest
import torch

from gpt2_lightning.config import compose_config
from gpt2_lightning.errors import ConfigError, DataError
from gpt2_lightning.generation.measures import choose_rows, measure_generation
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import small

PARTS = [np.arange(24, dtype=np.int32).reshape(6, 4), np.arange(24, 32, dtype=np.int32).reshape(2, 4)]


def test_rows_are_drawn_from_all_corpora_and_the_same_for_a_seed() -> None:
    everything = choose_rows(PARTS, 99, 1)
    assert sorted(everything[:, 0].tolist()) == list(range(0, 32, 4))
    assert torch.equal(choose_rows(PARTS, 3, 1), everything[:3])
    assert not torch.equal(choose_rows(PARTS, 99, 2), everything)


def test_rows_with_padding_are_left_out_and_none_at_all_is_said() -> None:
    padded = [np.where(PARTS[0] == 5, -1, PARTS[0])]
    assert 4 not in choose_rows(padded, 99, 1)[:, 0]
    assert len(choose_rows(padded, 0, 1)) == 0
    with pytest.raises(DataError, match="samples.measure = 3.*no validation row is text from end to end"):
        choose_rows([np.full((2, 4), -1)], 3, 1)
    with pytest.raises(ConfigError, match="samples.measure = 2.*needs samples.max_new_tokens of at least 1"):
        compose_config(["samples.measure=2", "samples.max_new_tokens=0"])


def test_what_is_measured_does_not_depend_on_the_batch() -> None:
    rows = torch.randint(28, (5, 16), generator=torch.Generator().manual_seed(0))
    found = [measure_generation(small(), rows, SamplerConfig(k=4), 9, seed=1, batch_size=size) for size in (1, 5)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["generation/length"] == 9
