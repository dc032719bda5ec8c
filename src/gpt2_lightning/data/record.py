"""Records in the stream: the stored parts of a record in, a passage whose labels are those of Y alone out.

A passage is X, cues and Y as tokens, each part encoded by itself, and end-of-text, which is predicted behind a Y. One that is
longer than a row loses tokens of its longest X. Augmentation changes X alone.
One number: 1, the end-of-text that a record without X is put behind, so that its first token is predicted from that alone.
Choice not taken: to store a mask beside the tokens; a record is read and encoded again in as little time as a document.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator

from gpt2_lightning.data.augment import Augmenter
from gpt2_lightning.data.lanes import NOTHING, Passage
from gpt2_lightning.data.rows import stored_record
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.tasks.task import Record

__all__ = ["RecordDocuments", "question_tokens", "record_passage"]

Encoded = list[tuple[str, np.ndarray]]  # each part's kind and tokens


@runtime_checkable
class Stored(Protocol):
    """Where records are kept as text: a store, or a hub data set."""

    @property
    def fingerprint(self) -> str:
        """What tells the text from any other."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What was odd about the text."""
        ...

    def __len__(self) -> int: ...

    def elements(self, n: int) -> int:
        """Bytes of the first n together."""
        ...

    def first(self, documents: int | None) -> int:
        """How many of these the first so many documents of the corpus make."""
        ...

    def text(self, i: int) -> str:
        """Document i."""
        ...


class RecordDocuments:
    """The documents of one part of a corpus, which are records: ``text`` is all of one, ``passage`` what is learnt of it."""

    tokenizer: Tokenizer | None = None

    def __init__(self, stored: Stored, tokenizer: Tokenizer, room: int, cut: str) -> None:
        self.stored, self.own_tokenizer, self.room, self.cut = stored, tokenizer, room, cut
        self.fingerprint, self.warnings = stored.fingerprint, stored.warnings

    def __len__(self) -> int:
        return len(self.stored)

    def elements(self, n: int) -> int:
        """Bytes of the first n together, as they are stored."""
        return self.stored.elements(n)

    def first(self, documents: int | None) -> int:
        """As many as are asked for: records are not cut into segments."""
        return self.stored.first(documents)

    def is_whole(self, i: int) -> bool:
        """Records are whole."""
        return True

    def record(self, i: int) -> Record:
        """The parts of record i."""
        return stored_record(self.stored.text(i))

    def text(self, i: int) -> str:
        """The text of record i, X, cues and Y."""
        return "".join(part.text for part in self.record(i))

    def passage(self, i: int, augmenter: Augmenter | None = None, drawn: dict[str, Generator] | None = None) -> Passage:
        """Record i as it is trained on, its X changed by the operations that were drawn."""
        encoded, applied = [], tuple(drawn or ())
        for kind, text in self.record(i):
            if kind == "x" and augmenter and drawn:
                encoded.append((kind, augmented(text, augmenter, drawn, self.own_tokenizer)))
            else:
                encoded.append((kind, self.own_tokenizer.encode(text)))
        return to_passage(encoded, self.own_tokenizer.end_of_text, self.room, self.cut)._replace(applied=applied)


def augmented(text: str, augmenter: Augmenter, drawn: dict[str, Generator], tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of a changed X; the blanks at its end, which may separate turns, stay."""
    body = text.rstrip()
    return np.concatenate([augmenter.change(body, drawn).tokens, tokenizer.encode(text[len(body) :])]).astype(np.int32)


def record_passage(record: Record, tokenizer: Tokenizer, room: int, cut: str) -> Passage:
    """A record as it is validated and judged: as trained on, never changed."""
    encoded = [(kind, tokenizer.encode(text)) for kind, text in record]
    return to_passage(encoded, tokenizer.end_of_text, room, cut)


def question_tokens(record: Record, tokenizer: Tokenizer, room: int, cut: str) -> list[int]:
    """What a record's last Y is written behind, at most ``room`` tokens; end-of-text where that is nothing."""
    encoded = fit([(kind, tokenizer.encode(text)) for kind, text in record], room, cut)
    tokens = [token for _, part in encoded for token in part.tolist()]
    return tokens[-room:] or [tokenizer.end_of_text]


def to_passage(encoded: Encoded, end_of_text: int, room: int, cut: str) -> Passage:
    """The tokens of the parts with end-of-text behind them, and the labels: those of Y."""
    end = np.array([end_of_text], np.int32)
    encoded = [*encoded, (encoded[-1][0], end)]
    fitting = fit(encoded, room, cut)
    if next(kind for kind, tokens in fitting if len(tokens)) == "y":
        fitting = [("cue", end), *fit(encoded, room - 1, cut)]
    tokens = np.concatenate([part for _, part in fitting]).astype(np.int32)
    labels = [part if kind == "y" else np.full(len(part), NOTHING) for kind, part in fitting]
    return Passage(tokens, np.concatenate(labels).astype(np.int32))


def fit(encoded: Encoded, room: int, cut: str) -> Encoded:
    """The parts with as many tokens less of the longest X, at its end or start, as are more than ``room``; then of the next."""
    encoded = list(encoded)
    while (over := sum(len(tokens) for _, tokens in encoded) - room) > 0:
        places = [i for i, (kind, tokens) in enumerate(encoded) if kind == "x" and len(tokens)]
        if not places:
            break
        i = max(places, key=lambda place: len(encoded[place][1]))
        kept = max(0, len(encoded[i][1]) - over)
        encoded[i] = "x", encoded[i][1][:kept] if cut == "end" else encoded[i][1][len(encoded[i][1]) - kept :]
    return encoded
