"""Completion: any X and Y; judged by whether the likeliest text is Y, and by what Y costs.

One number: 1, the text that counts as right: Y itself, but for blanks around it.
"""

from typing import Any

from gpt2_lightning.tasks.task import Judgement, Model, Record, Records, Task, answer, cue, nats_per_token, text_of, x, y

__all__ = ["Completion"]


class Completion(Task):
    """X, the cue, Y."""

    measures = ("exact_match", "nats_per_token")

    def read(self, record: dict[str, Any]) -> Record:
        """The texts of the two fields."""
        return [x(text_of(record, self.config.x)), cue(self.config.cue), y(text_of(record, self.config.y))]

    def judge(self, records: Records, model: Model) -> Judgement:
        """The share of records whose Y is what the model writes, and the nats a token of Y."""
        found = records.held_out
        nats = nats_per_token(model.nats(found))
        written = model.write(found, self.config.max_new_tokens, beams=self.config.beams)
        right = [w.strip() == answer(r).strip() for w, r in zip(written, found, strict=True)]
        measures = {"exact_match": sum(right) / len(right), "nats_per_token": nats}
        return Judgement(measures=measures, text=self.examples(found, written))
