"""Tokenizers are lossless, and GPT-2's is the published one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_lightning.data import tokens
from gpt2_lightning.errors import DataError

GPT2, BYTES = tokens.load_tokenizer("gpt2"), tokens.load_tokenizer("bytes")


def test_gpt2s_published_ids() -> None:
    assert GPT2.encode("Hello world").tolist() == [15496, 995]
    assert GPT2.encode(" antidisestablishmentarianism").tolist() == [1885, 29207, 44390, 3699, 1042]
    assert (GPT2.vocab_size, GPT2.end_of_text) == (50257, 50256)


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
@given(text=st.text(max_size=200))
def test_text_survives_and_bytes_add_up(tokenizer: tokens.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@pytest.mark.parametrize("tokenizer", [GPT2, BYTES], ids=["gpt2", "bytes"])
def test_end_of_text_is_no_text(tokenizer: tokens.Tokenizer) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([tokenizer.end_of_text]) == ""
    assert tokenizer.token_bytes()[tokenizer.end_of_text] == 0
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
    assert tokenizer.encode("a").dtype == np.int32


def test_another_vocabulary_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "RANKS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="SHA-256"):
        tokens.gpt2_ranks.__wrapped__()
