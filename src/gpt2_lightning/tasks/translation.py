"""Translation: a sentence and its translation; judged by sacrebleu's BLEU and chrF, and by what copying the source would get.

One number: 4, the beams of conf/task/translation.yaml. Choice not taken: BLEU of our own; figures differ by its tokenising.
"""

from collections.abc import Sequence
from typing import Any

from gpt2_lightning.tasks.task import Judgement, Model, Record, Records, Task, answer, cue, nats_per_token, text_of, x, y

__all__ = ["Translation", "bleu_and_chrf"]


class Translation(Task):
    """The source, the cue, the translation."""

    measures = ("bleu", "chrf", "copy_chrf", "nats_per_token")

    def read(self, record: dict[str, Any]) -> Record:
        """The texts of the two fields, each on one line."""
        source, target = (" ".join(text_of(record, name).split()) for name in (self.config.x, self.config.y))
        return [x(source), cue(self.config.cue), y(target)]

    def judge(self, records: Records, model: Model) -> Judgement:
        """BLEU and chrF of the translations, chrF of the sources as they are, nats a token of the references."""
        found = records.held_out
        written = [" ".join(text.split()) for text in model.write(found, self.config.max_new_tokens, beams=self.config.beams)]
        references = [answer(r) for r in found]
        bleu, chrf = bleu_and_chrf(written, references)
        measures = {
            "bleu": bleu,
            "chrf": chrf,
            "copy_chrf": bleu_and_chrf([r[0].text for r in found], references)[1],
            "nats_per_token": nats_per_token(model.nats(found)),
        }
        return Judgement(measures=measures, text=self.examples(found, written))


def bleu_and_chrf(written: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """sacrebleu's corpus BLEU and chrF with its own defaults, 0 to 100."""
    import sacrebleu

    return sacrebleu.corpus_bleu(written, [references]).score, sacrebleu.corpus_chrf(written, [references]).score
