"""What the ``evaluate`` command is asked for.

One number: 3 protocols, beside the measures of every task. Choice not taken: a name from a registry of thousands; those are
lm-eval's, which can score our checkpoints (docs/weights.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from gpt2_lightning.settings.data import SPLITS
from gpt2_lightning.settings.setting import Settings, setting

__all__ = ["PROTOCOLS", "EvaluateConfig"]

PROTOCOLS = ("perplexity", "lambada", "hellaswag")
OF_TEXT = ("data", "split", "stride", "documents")  # mean nothing to records


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(Settings):
    """Whose decoder is judged, by what protocol, on which records."""

    run: str = setting("", "run, its folder, a checkpoint's, a folder in transformers' format, or a released model's name")
    protocol: str = setting("perplexity", "how it is judged", choices=PROTOCOLS)
    task: str | None = setting(None, "task whose own measures are taken (none: those of the protocol)")
    data: str | None = setting(None, "option of data= whose validation text is read (none: the run's own)")
    path: str | None = setting(None, "file or glob: text or JSONL for perplexity, records for a task, else JSONL")
    hub: str | None = setting(None, "data set id on the hub, for lambada and hellaswag (none, and no path: the usual one)")
    field: str = setting("text", "field of a JSONL file that holds the text")
    split: str = setting("file", "what a document is in a text file", choices=SPLITS)
    documents: str = setting(
        "joined",
        "whether documents follow each other in the context, as in a validation, or each has its own",
        choices=("joined", "apart"),
    )
    stride: int | None = setting(None, "tokens that the window moves by (none: the context's length)", at_least=1)
    limit: int | None = setting(
        None, "most documents of a corpus, or records (none: all; of a run's own records those a validation judges)", at_least=1
    )
    batch_size: int = setting(8, "rows scored side by side", at_least=1)
    accelerator: str = setting("auto", "kind of device", choices=("auto", "cpu", "gpu"))
    out: str | None = setting(None, "JSON file to write")
    outputs: str = setting("outputs", "output folder in which the run is looked for")

    def check_rules(self) -> None:
        """One place to read from; the keys go with the protocol."""
        if not self.run:
            raise self.refuse("run", "must be given", "Set run=NAME")
        places = [name for name in ("data", "path", "hub") if getattr(self, name) is not None]
        if len(places) > 1:
            raise self.refuse(places[1], f"excludes {places[0]}", "Give one of the two")
        if self.task is not None and self.protocol != "perplexity":
            raise self.refuse("task", f"excludes protocol={self.protocol}", "Give one of the two")
        if self.protocol == "perplexity" and self.hub is not None:
            raise self.refuse("hub", "is for lambada and hellaswag", "Write conf/data/NAME.yaml with the id, and set data=NAME")
        how = f"protocol={self.protocol}" if self.task is None else f"task={self.task}"
        for name in self.meaningless():
            if getattr(self, name) != next(f.default for f in fields(self) if f.name == name):
                raise self.refuse(name, f"has no meaning for {how}", f"Leave {name} out")

    def meaningless(self) -> Sequence[str]:
        """The keys that say nothing to what judges."""
        if self.task is not None:
            return [name for name in (*OF_TEXT, "field", "batch_size") if name != "data"]
        return OF_TEXT if self.protocol != "perplexity" else ()
