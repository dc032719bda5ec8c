"""A small sample in the original formats, made up here: documents, LAMBADA's passages, HellaSwag's questions."""

import json
import random
from pathlib import Path
from typing import Any

NOUNS = ["sea", "ship", "lamp", "street", "garden", "letter", "window", "winter", "river", "teacher", "naïveté", "café"]
VERBS = ["saw", "lost", "painted", "followed", "remembered", "carried"]


def sentence(draw: random.Random) -> str:
    return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}, and nobody {draw.choice(VERBS)} it"


def documents(n: int = 5) -> list[str]:
    draw = random.Random(1)
    return [". ".join(sentence(draw) for _ in range(3 + 9 * i)) + "." for i in range(n)]


def passages(n: int = 24) -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [{"text": f"{sentence(draw)}. {sentence(draw)} in the {draw.choice(NOUNS)}"} for _ in range(n)]


def questions(n: int = 24) -> list[dict[str, Any]]:
    draw = random.Random(3)
    return [
        {
            "ind": i,
            "activity_label": draw.choice(["Baking bread", "Home and Garden"]),
            "ctx_a": draw.choice(["", "[header] How to sail [title] "]) + sentence(draw) + ".",
            "ctx_b": draw.choice(["", "then the man", "she"]),
            "endings": [f"{sentence(draw)}{' [step]  once more' * (i % 3 == j)}." for j in range(4)],
            "label": draw.choice([i % 4, str(i % 4)]),
        }
        for i in range(n)
    ]


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
