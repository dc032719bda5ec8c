"""Dialogue: turns of two or more speakers; the replies are predicted, the turns before them are read.

A turn is ``SPEAKER: TEXT`` on a line of its own, so a reply ends where the line does. Judged by the perplexity of the replies,
beside that of the same replies without the turns before them, and by how many distinct n-grams drawn replies have.
One number: 1, the turn that is a reply by default, the last. Choice not taken: special tokens for speakers, which GPT-2's
vocabulary does not have.
"""

import math
from typing import Any

from gpt2_lightning.metrics import perplexity
from gpt2_lightning.tasks.task import (
    BadRecord,
    Judgement,
    Model,
    Record,
    Records,
    Task,
    answer,
    cue,
    field_of,
    nats_per_token,
    with_answer,
    x,
    y,
)
from gpt2_lightning.text_metrics import distinct

__all__ = ["Dialogue", "Turn"]

Turn = tuple[str, str]  # who speaks, and what
SPEAKER, SAID = ("speaker", "role", "from"), ("text", "content", "value")


class Dialogue(Task):
    """The turns before, the speaker's name, the reply."""

    measures = ("reply_perplexity", "alone_perplexity", "distinct_1", "distinct_2")

    def read(self, record: dict[str, Any]) -> Record:
        """The turns of a field: a list of texts, or of objects with a speaker and a text."""
        values = field_of(record, self.config.x)
        if not isinstance(values, list) or len(values) < 2:
            raise BadRecord(f"holds no list of two turns or more in the field '{self.config.x}'")
        return self.parts(self.turns(values))

    def turns(self, values: list[Any]) -> list[Turn]:
        """Who speaks and what: names are the record's own, or the configured speakers in the order in which they come."""
        found: list[Turn] = []
        names: dict[str, str] = {}
        for i, value in enumerate(values):
            who, said = self.turn(value, i)
            if self.config.speakers:
                who = names.setdefault(who, self.config.speakers[len(names) % len(self.config.speakers)])
            found.append((who, said))
        return found

    def turn(self, value: Any, i: int) -> Turn:
        """One turn; speakers that are not named take turns. Raises BadRecord."""
        speakers = self.config.speakers or ["A", "B"]
        who: Any = None
        said: Any = None
        if isinstance(value, str):
            who, said = speakers[i % len(speakers)], value
        elif isinstance(value, dict):
            who, said = (next((value[name] for name in names if name in value), None) for names in (SPEAKER, SAID))
        if not isinstance(who, str) or not isinstance(said, str) or not said.strip():
            raise BadRecord(f"has no speaker and text in turn {i + 1} of the field '{self.config.x}'")
        return " ".join(who.replace(":", " ").split()), " ".join(said.split())

    def parts(self, turns: list[Turn]) -> Record:
        """Lines of speakers and texts: the replies are Y."""
        kept = turns if self.config.turns is None else turns[-self.config.turns - 1 :]
        if self.config.replies == "last":
            before = "".join(f"{who}: {said}\n" for who, said in kept[:-1])
            return [x(before)] * bool(before) + reply(*kept[-1])
        first = [x("{}: {}\n".format(*kept[0]))] if len(kept) > 1 else []
        return first + [part for turn in kept[len(first) :] for part in reply(*turn)]

    def prompt(self, turns: list[Turn], who: str) -> Record:
        """What the next reply of a speaker is written behind, its place last."""
        return self.parts([*turns, (who, "")])

    def judge(self, records: Records, model: Model) -> Judgement:
        """Perplexity of the last replies with and without what stands before them, and the variety of drawn ones."""
        last = [with_answer(r, answer(r)) for r in records.held_out]
        drawn = model.write(last, self.config.max_new_tokens, sample=True, stop=("\n",))
        words = [text.split() for text in drawn]
        found = {
            "reply_perplexity": perplexity(nats_per_token(model.nats(last))),
            "alone_perplexity": perplexity(nats_per_token(model.nats([r[-2:] for r in last]))),
            "distinct_1": distinct(words, 1),
            "distinct_2": distinct(words, 2),
        }
        shown = zip(last[: self.config.shown], drawn, strict=False)
        text = "\n\n".join("".join(p.text for p in r[:-1]) + f"{d}\n  (there: {answer(r).strip()})" for r, d in shown)
        return Judgement(measures={name: v for name, v in found.items() if math.isfinite(v)}, text=text)


def reply(who: str, said: str) -> Record:
    """A turn that is predicted, to the end of its line."""
    return [cue(f"{who}:"), y(f" {said}\n")]
