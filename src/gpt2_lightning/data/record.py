"""Records in the stream: the stored parts of a record in, a passage whose labels are those of Y alone out.

A passage is X, cues and Y as tokens, each part encoded by itself, and end-of-text, which is predicted behind a Y. One that is
longer than a row loses tokens of its longest X. Augmentation changes X alone.
One number: 1, the end-of-text that a record without X is put behind, so that its first token is predicted from that alone.
Choice not taken: to store a mask beside the tokens; a record is read and encoded again in as little time as a document.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from gpt2_lightning.data.augment import Augmenter, Drawn
from gpt2_lightning.data.documents import Documents
from gpt2_lightning.data.lanes import Passage
from gpt2_lightning.data.rows import stored_record
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.loss import IGNORED
from gpt2_lightning.tasks.task import Record

__all__ = ["RecordDocuments", "question_tokens", "record_passage"]

Encoded = list[tuple[str, np.ndarray]]  # each part's kind and tokens


class RecordDocuments(Documents):
    """The documents of one part of a corpus, which are records: ``text`` is all of one, ``passage`` what is learnt of it."""

    def __init__(self, stored: Documents, room: int, cut: str) -> None:
        self.stored, self.room, self.cut = stored, room, cut
        self.fingerprint, self.warnings = stored.fingerprint, stored.warnings

    def __len__(self) -> int:
        return len(self.stored)

    def elements(self, n: int) -> int:
        """Bytes of the first n together, as they are stored."""
        return self.stored.elements(n)

    def discard(self) -> None:
        """Remove what was built for a run that is refused."""
        self.stored.discard()

    def record(self, i: int) -> Record:
        """The parts of record i."""
        return stored_record(self.stored.text(i))

    def text(self, i: int) -> str:
        """The text of record i, X, cues and Y."""
        return "".join(part.text for part in self.record(i))

    def tokens(self, i: int, tokenizer: Tokenizer) -> np.ndarray:
        """The tokens of record i as it is trained on."""
        return self.passage(i, tokenizer).tokens

    def passage(self, i: int, tokenizer: Tokenizer, augmenter: Augmenter | None = None, drawn: Drawn | None = None) -> Passage:
        """Record i as it is trained on, its X changed by the operations that were drawn."""
        change = partial(augmented, augmenter, drawn, tokenizer) if augmenter and drawn else tokenizer.encode
        return record_passage(self.record(i), tokenizer, self.room, self.cut, change)._replace(applied=tuple(drawn or ()))


def augmented(augmenter: Augmenter, drawn: Drawn, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a changed X; the blanks at its end, which may separate turns, stay."""
    body = text.rstrip()
    return np.concatenate([augmenter.change(body, drawn).tokens, tokenizer.encode(text[len(body) :])]).astype(np.int32)


def record_passage(
    record: Record, tokenizer: Tokenizer, room: int, cut: str, encode_x: Callable[[str], np.ndarray] | None = None
) -> Passage:
    """The tokens of a record's parts with end-of-text behind them, and the labels: those of Y. ``encode_x`` may change X."""
    of_x, end = encode_x or tokenizer.encode, np.array([tokenizer.end_of_text], np.int32)
    encoded = [(kind, of_x(text) if kind == "x" else tokenizer.encode(text)) for kind, text in record]
    encoded.append((record[-1].kind, end))
    fitting = fit(encoded, room, cut)
    if next(kind for kind, tokens in fitting if len(tokens)) == "y":
        fitting = [("cue", end), *fit(encoded, room - 1, cut)]
    tokens = np.concatenate([part for _, part in fitting]).astype(np.int32)
    labels = [part if kind == "y" else np.full(len(part), IGNORED) for kind, part in fitting]
    return Passage(tokens, np.concatenate(labels).astype(np.int32))


def question_tokens(record: Record, tokenizer: Tokenizer, room: int, cut: str) -> list[int]:
    """What a record's last Y is written behind, at most ``room`` tokens; end-of-text where that is nothing."""
    encoded = fit([(kind, tokenizer.encode(text)) for kind, text in record], room, cut)
    tokens = [token for _, part in encoded for token in part.tolist()]
    return tokens[-room:] or [tokenizer.end_of_text]


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
