"""Protocols of records: a record in, what is to be scored of it out; its scores in, its figures out.

LAMBADA (Paperno et al. 2016, as OpenAI's GPT-2 was judged): the last word of a passage, right where each of its tokens is the
likeliest, and its perplexity. HellaSwag (Zellers et al. 2019): which of four endings is the likeliest, as it is, by character
and by byte. Texts are cut and cleaned as EleutherAI's lm-eval does it, so that the figures are comparable.
One number: 4 endings. Choice not taken: scores of the words between the spaces alone; a word is predicted with its space.
"""

import math
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import DataError
from gpt2_lightning.evaluation.score import Score
from gpt2_lightning.metrics import perplexity

__all__ = ["HELLASWAG", "LAMBADA", "Protocol", "Request", "encode_pair"]

Record = dict[str, Any]
Figures = dict[str, int | float]


class Request(NamedTuple):
    """A text, and how it may go on."""

    context: str
    continuation: str


class Protocol(NamedTuple):
    """``requests`` of a record at a place, ``judge`` for its scores, ``summary`` over all records, and where they are."""

    requests: Callable[[Record, str], list[Request]]
    judge: Callable[[Record, Sequence[Score]], Figures]
    summary: Callable[[Sequence[Figures]], Figures]
    hub: str
    part: str


def text_field(record: Record, name: str, place: str) -> str:
    """A field of a record that must be text; raises DataError."""
    value = record.get(name)
    if not isinstance(value, str):
        has = ", ".join(map(str, record)) or "none"
        rule = f"has no text in '{name}' but {type(value).__name__}; its fields are {has}"
        raise DataError("record", key="line", value=place, rule=rule)
    return value


def lambada_requests(record: Record, place: str) -> list[Request]:
    """The passage without its last word, and that word with the space before it."""
    before, _, word = text_field(record, "text", place).rpartition(" ")
    return [Request(before, f" {word}")]


def lambada_judge(record: Record, scores: Sequence[Score]) -> Figures:
    """Whether the word was guessed, and its log-probability."""
    return {"accuracy": float(scores[0].greedy), "log_p": scores[0].log_p}


def lambada_summary(figures: Sequence[Figures]) -> Figures:
    """Accuracy, and the perplexity of a last word, however many tokens it has."""
    return {
        "accuracy": fmean(one["accuracy"] for one in figures),
        "perplexity": perplexity(-fmean(one["log_p"] for one in figures)),
    }


def cleaned(text: str) -> str:
    """Text without the marks that WikiHow's articles have left in it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag_endings(record: Record, place: str) -> list[str]:
    """The cleaned endings of a record; raises DataError."""
    endings = record.get("endings")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) for e in endings):
        raise DataError("record", key="line", value=place, rule="has no list of endings that are text")
    return [cleaned(ending) for ending in endings]


def hellaswag_requests(record: Record, place: str) -> list[Request]:
    """What happens, and each ending; raises DataError for a record without its label."""
    endings = hellaswag_endings(record, place)
    label = str(record.get("label", ""))
    if not label.isdecimal() or int(label) >= len(endings):
        rule = f"has no label of one of its {len(endings)} endings but {label!r}"
        raise DataError("record", key="line", value=place, rule=rule, remedy="The test part's labels are not published")
    activity, first, second = (text_field(record, name, place) for name in ("activity_label", "ctx_a", "ctx_b"))
    query = cleaned(f"{activity}: {first} {second.capitalize()}")
    return [Request(query, f" {ending}") for ending in endings]


def hellaswag_judge(record: Record, scores: Sequence[Score]) -> Figures:
    """Whether the right ending is the likeliest: as it is, by character (lm-eval's acc_norm), by byte (its acc_bytes)."""
    endings = hellaswag_endings(record, "")
    lengths = {"accuracy": [1] * len(endings), "accuracy_norm": [len(e) for e in endings]}
    lengths["accuracy_bytes"] = [len(ending.encode()) for ending in endings]
    return {name: float(best(scores, sizes) == int(record["label"])) for name, sizes in lengths.items()}


def best(scores: Sequence[Score], sizes: Sequence[int]) -> int:
    """The place of the greatest log-probability for its size, the first of equal ones."""
    rates = [score.log_p / size if size else -math.inf for score, size in zip(scores, sizes, strict=True)]
    return rates.index(max(rates))


def means(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure."""
    return {name: fmean(one[name] for one in figures) for name in figures[0]}


LAMBADA = Protocol(lambada_requests, lambada_judge, lambada_summary, "EleutherAI/lambada_openai", "test")
HELLASWAG = Protocol(hellaswag_requests, hellaswag_judge, means, "Rowan/hellaswag", "validation")


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both as tokens, cut where the context's own tokens end; blanks at its end go to the continuation, to which they belong.

    Without a context, end-of-text is it.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    before = tokenizer.encode(context).tolist()
    whole = tokenizer.encode(context + continuation).tolist()
    return before or [tokenizer.end_of_text], whole[len(before) :]
