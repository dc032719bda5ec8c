"""LAMBADA and HellaSwag on a few records in their own formats: requests, scores and figures equal those made by hand."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import DataError
from gpt2_lightning.evaluation.protocols import HELLASWAG, LAMBADA, Protocol, Request, encode_pair
from gpt2_lightning.evaluation.score import Score, score
from tests.generation.decoders import twin

WORDS = [
    {"text": "He looked at the sea and could not see the ship"},
    {"text": "She said nothing, for there was nothing to say about Gabriel"},
    {"text": "One two three four five six seven eight nine ten"},
    {"text": "word"},
]
ENDINGS = [
    {"ind": 4, "activity_label": "Removing ice from car", "ctx_a": "Then, the man writes over the snow.",
     "ctx_b": "then", "ctx": "unused", "label": 3, "split": "val",
     "endings": [", the man adds wax to the windshield.", ", a person boards a lift.", "the man [substeps] uses  a brush.",
                 "cuts — naïvely."]},
    {"ind": 9, "activity_label": "Home", "ctx_a": "[header] How to knit [title] Take wool.", "ctx_b": "", "label": "0",
     "endings": ["Knit.", "It is long and it is green and it goes on for ever.", "Do not.", "No"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(n_layer=2, n_head=2, n_embd=16, block_size=160, vocab_size=257, init_std=0.3)).eval()


@torch.no_grad()
def log_p(theirs: transformers.GPT2LMHeadModel, context: str, continuation: str) -> tuple[float, bool]:
    """By bytes: what follows the context, a token at a time."""
    row, total, greedy = list(context.encode()) or [256], 0.0, True
    for byte in continuation.encode():
        found = F.log_softmax(theirs(torch.tensor([row])).logits[0, -1].double(), -1)
        total, greedy = total + float(found[byte]), greedy and int(found.argmax()) == byte
        row.append(byte)
    return total, greedy


def judged(protocol: Protocol, records: list[dict[str, Any]], decoder: Decoder) -> dict[str, float]:
    tokenizer, found = load_tokenizer("bytes"), []
    for record in records:
        pairs = [encode_pair(tokenizer, *request) for request in protocol.requests(record, "here")]
        found.append(protocol.judge(record, score(decoder, [c for c, _ in pairs], [t for _, t in pairs])))
    return protocol.summary(found)


def test_lambada_equals_the_reference_by_hand(decoder: Decoder) -> None:
    theirs = twin(decoder)
    by_hand = [log_p(theirs, *(" ".join(r["text"].split(" ")[:-1]), " " + r["text"].split(" ")[-1])) for r in WORDS]
    found = judged(LAMBADA, WORDS, decoder)
    assert found["perplexity"] == pytest.approx(math.exp(-sum(p for p, _ in by_hand) / 4), rel=1e-5)
    assert found["accuracy"] == sum(greedy for _, greedy in by_hand) / 4


def test_a_word_that_is_greedy_counts(decoder: Decoder) -> None:
    judge = LAMBADA.judge
    rows = [judge({}, [Score(-1.0, True)]), judge({}, [Score(-3.0, False)])]
    assert LAMBADA.summary(rows) == {"accuracy": 0.5, "perplexity": pytest.approx(math.exp(2))}


def test_hellaswag_equals_the_reference_by_hand(decoder: Decoder) -> None:
    theirs = twin(decoder)
    texts = [
        ("Removing ice from car: Then, the man writes over the snow. Then",
         [", the man adds wax to the windshield.", ", a person boards a lift.", "the man uses a brush.", "cuts — naïvely."], 3),
        ("Home: How to knit. Take wool.", ["Knit.", ENDINGS[1]["endings"][1], "Do not.", "No"], 0),
    ]  # fmt: skip
    hits = {"accuracy": 0, "accuracy_norm": 0, "accuracy_bytes": 0}
    for context, endings, label in texts:
        found = [log_p(theirs, context, f" {ending}")[0] for ending in endings]
        sizes = {"accuracy": [1] * 4, "accuracy_norm": map(len, endings), "accuracy_bytes": [len(e.encode()) for e in endings]}
        for name, lengths in sizes.items():
            rates = [p / n for p, n in zip(found, lengths, strict=True)]
            hits[name] += rates.index(max(rates)) == label
    assert judged(HELLASWAG, ENDINGS, decoder) == {name: n / 2 for name, n in hits.items()}


def test_hellaswags_texts_are_cleaned_as_lm_eval_cleans_them() -> None:
    first, second = (HELLASWAG.requests(record, "here") for record in ENDINGS)
    assert first[2] == Request("Removing ice from car: Then, the man writes over the snow. Then", " the man uses a brush.")
    assert second[0] == Request("Home: How to knit. Take wool.", " Knit.")


def test_length_decides_only_where_it_is_asked_to() -> None:
    record = {"endings": ["aa", "éé", "aaaaaaaa", "aaaaaaaaaaaaaaaa"], "label": 1}
    scores = [Score(-2.0, False), Score(-2.2, False), Score(-9.0, False), Score(-17.5, False)]
    assert HELLASWAG.judge(record, scores) == {"accuracy": 0.0, "accuracy_norm": 0.0, "accuracy_bytes": 1.0}
    assert HELLASWAG.judge(record | {"label": "0"}, scores)["accuracy_norm"] == 1.0


BAD = [
    (LAMBADA, {"txt": "a b"}, r"line = here\): has no text in 'text' but NoneType; its fields are txt"),
    (LAMBADA, {"text": 3}, "has no text in 'text' but int"),
    (HELLASWAG, ENDINGS[0] | {"label": ""}, "has no label of one of its 4 endings but ''. The test part's labels are not"),
    (HELLASWAG, ENDINGS[0] | {"label": 4}, "has no label of one of its 4 endings but '4'"),
    (HELLASWAG, ENDINGS[0] | {"label": -1}, "has no label of one of its 4 endings but '-1'"),
    (HELLASWAG, ENDINGS[0] | {"endings": "abcd"}, "has no list of endings that are text"),
    (HELLASWAG, ENDINGS[0] | {"endings": ["a", None]}, "has no list of endings that are text"),
    (HELLASWAG, {k: v for k, v in ENDINGS[0].items() if k != "ctx_b"}, "has no text in 'ctx_b'"),
]


@pytest.mark.parametrize(("protocol", "record", "message"), BAD)
def test_records_that_are_none_are_refused_by_place(protocol: Protocol, record: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        protocol.requests(record, "here")


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize(("context", "continuation"), [("To be", " or"), ("To be ", "or"), ("", " or"), ("x", ""), ("  ", "y")])
def test_pairs_are_the_tokens_of_the_whole(name: str, context: str, continuation: str) -> None:
    tokenizer = load_tokenizer(name)
    before, after = encode_pair(tokenizer, context, continuation)
    given = [] if before == [tokenizer.end_of_text] else before
    assert [*given, *after] == tokenizer.encode(context + continuation).tolist()
    assert tokenizer.decode(given) == context.rstrip()
