"""Tokenizers: text in, token ids out, and back. GPT-2's byte-pair encoding, from a vocabulary that ships with the package,
and plain bytes.

One number: 50,257 words, the last of them end-of-text. Choice not taken: ``tiktoken.get_encoding``, which downloads.
"""

import base64
import gzip
import hashlib
from abc import ABC, abstractmethod
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import tiktoken

from gpt2_lightning.errors import DataError
from gpt2_lightning.settings.data import TOKENIZERS

__all__ = ["END_OF_TEXT", "ByteTokenizer", "GPT2Tokenizer", "Tokenizer", "Words", "gpt2_ranks", "load_tokenizer"]

END_OF_TEXT = "<|endoftext|>"

RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # Radford et al. 2019, encoder.py


class Words(ABC):
    """What tokens are read as, and which of them ends a text."""

    end_of_text: int

    @abstractmethod
    def decode_bytes(self, tokens: list[int]) -> bytes:
        """The bytes of the ids."""


class Tokenizer(Words):
    """What a tokenizer offers: the last word of its vocabulary is end-of-text, which has no bytes."""

    name: str

    def __init__(self) -> None:
        self.vocab_size = TOKENIZERS[self.name]
        self.end_of_text = self.vocab_size - 1

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32."""

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; bytes that make no whole character become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def token_bytes(self) -> np.ndarray:
        """Bytes of each word of the vocabulary, int64."""
        return np.array([len(self.decode_bytes([token])) for token in range(self.vocab_size)])


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding through tiktoken."""

    name = "gpt2"

    def __init__(self) -> None:
        super().__init__()
        special = {END_OF_TEXT: self.end_of_text}
        self.encoding = tiktoken.Encoding("gpt2", pat_str=SPLIT, mergeable_ranks=gpt2_ranks(), special_tokens=special)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process, from the vocabulary that ships."""
        return load_tokenizer, ("gpt2",)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32; text that spells a special token is text."""
        return self.encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """The bytes of the ids."""
        return self.encoding.decode_bytes([t for t in tokens if t != self.end_of_text])


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, and end-of-text as number 256."""

    name = "bytes"

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32."""
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8).astype(np.int32)

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """The bytes of the ids."""
        return bytes(t for t in tokens if t < 256)


@cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, one of TOKENIZERS, made once."""
    return {kind.name: kind for kind in (GPT2Tokenizer, ByteTokenizer)}[name]()


@cache
def gpt2_ranks() -> dict[bytes, int]:
    """GPT-2's merges as ranks; raises DataError when the shipped file is not the one it should be."""
    content = gzip.decompress((files("gpt2_lightning") / "assets" / "gpt2.tiktoken.gz").read_bytes())
    if hashlib.sha256(content).hexdigest() != RANKS_SHA256:
        raise DataError("GPT-2's vocabulary", rule="its SHA-256 is not that of the published file", remedy="Install again")
    return {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in content.splitlines())}
