"""Documents: one part of a corpus by position; a place in, its text, or the passage that is learnt of it, out.

One number: 1, the document that is read for any place. Choice not taken: iterators, which have no places.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from gpt2_lightning.data.augment import Augmenter, Drawn
from gpt2_lightning.data.lanes import Passage
from gpt2_lightning.data.tokens import Tokenizer

__all__ = ["Documents", "ended"]


class Documents(ABC):
    """The documents of one part of a corpus, or the segments of long ones; ``fingerprint`` tells their text from any other."""

    fingerprint: str
    warnings: Sequence[str] = ()  # what was odd about the text
    tokenizer: Tokenizer | None = None  # that of what is stored, None where that is text

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def elements(self, n: int) -> int:
        """Bytes, or tokens where it is tokenised, of the first n together."""

    @abstractmethod
    def text(self, i: int) -> str:
        """The text of document i."""

    def first(self, documents: int | None) -> int:
        """How many of these the first so many documents of the corpus make; None means all."""
        return len(self) if documents is None else min(len(self), documents)

    def is_whole(self, i: int) -> bool:
        """Whether a document of the corpus ends with it."""
        return True

    def discard(self) -> None:
        """Remove what was built for a run that is refused: nothing, where nothing is built."""
        return

    def tokens(self, i: int, tokenizer: Tokenizer) -> np.ndarray:
        """The tokens of document i and end-of-text."""
        return ended(tokenizer.encode(self.text(i)), tokenizer.end_of_text)

    def passage(self, i: int, tokenizer: Tokenizer, augmenter: Augmenter | None = None, drawn: Drawn | None = None) -> Passage:
        """Document i as it is trained on, changed by what was drawn for it, with end-of-text behind it."""
        if not augmenter or not drawn:
            return Passage(self.tokens(i, tokenizer))
        changed, end = augmenter.change(self.text(i), drawn), tokenizer.end_of_text
        labels = None if changed.labels is None else ended(changed.labels, end)
        return changed._replace(tokens=ended(changed.tokens, end), labels=labels)


def ended(tokens: np.ndarray, end_of_text: int) -> np.ndarray:
    """The tokens with one more behind them; ``np.append`` takes several times as long."""
    out = np.empty(len(tokens) + 1, tokens.dtype)
    out[:-1], out[-1] = tokens, end_of_text
    return out
