"""What a record means: which of its fields are read, and how what is learnt of it is judged.

One number: 128, the held-out records that are judged at each validation.
"""

import re
from dataclasses import dataclass, field

from gpt2_lightning.settings.data import DataConfig
from gpt2_lightning.settings.decoder import DecoderConfig
from gpt2_lightning.settings.setting import Settings, setting

__all__ = ["NAMES", "TaskConfig"]

NAMES = ("lm", "classification", "dialogue", "translation", "completion")


@dataclass(kw_only=True, slots=True)
class TaskConfig(Settings, group="task"):
    """The task; a task reads those of the fields that concern it."""

    name: str = setting("lm", "task: lm, classification, dialogue, translation, completion, or that of task.file")
    file: str | None = setting(None, "Python file below the current folder that holds a task of your own")
    x: str = setting("text", "field of X: the text, the turns, the source, the prompt; of an object in it: OUTER.INNER")
    y: str = setting("label", "field of Y: the label, the translation, the completion; of an object in it: OUTER.INNER")
    cue: str = setting("\n\n", "what stands between X and Y")
    cut: str = setting("end", "which end of X is cut off where a record is longer than a row", choices=("start", "end"))
    labels: list[str] = field(default_factory=list)
    head: str = setting("likelihood", "how a label is chosen", choices=("likelihood", "last_token"))
    speakers: list[str] = field(default_factory=list)
    replies: str = setting("last", "which turns of a dialogue are replies, and learnt", choices=("last", "all"))
    turns: int | None = setting(None, "most turns before the last that are read (0: none, null: all)", at_least=0)
    beams: int = setting(1, "beams that texts to be judged are searched with (1: greedy)", at_least=1)
    max_new_tokens: int = setting(64, "new tokens of a text to be judged at most", at_least=1)
    eval_records: int = setting(128, "held-out records that are judged at each validation (0: none)", at_least=0)
    shown: int = setting(4, "judged records that are shown as text", at_least=0)

    def check_rules(self) -> None:
        """A name becomes a word of the configuration; labels and speakers are told apart."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.name):
            raise self.refuse("name", "must be 1 to 64 letters, digits or '_', the first no digit")
        if self.file is None and self.name not in NAMES:
            remedy = "For one of your own set task.file=my_task.py"
            raise self.refuse("name", f"must be one of {', '.join(NAMES)}", remedy)
        if self.file is not None and self.name in NAMES:
            raise self.refuse("name", "is a task of the package, and task.file is yours", "Give yours another name")
        for name in ("labels", "speakers"):
            words = getattr(self, name)
            if len(set(words)) < len(words) or "" in words:
                raise self.refuse(name, "must differ from each other and not be empty")
        if len(self.speakers) == 1:
            raise self.refuse("speakers", "must be none, or two and more", "Set task.speakers=[You,Me]")
        if self.file is not None and (self.file.startswith(("/", "~")) or ".." in self.file.split("/")):
            raise self.refuse("file", "must lie below the current folder", "Set task.file=my_task.py")

    @property
    def of_records(self) -> bool:
        """Whether documents are records, of which only parts are predicted."""
        return self.name != "lm"

    def check_beside(self, data: DataConfig, model: DecoderConfig) -> None:
        """What records need of the stream and the decoder, so that none sees or continues another; raises ConfigError."""
        if not self.of_records:
            return
        task = f"task={self.name}"
        if data.synthetic is not None:
            raise data.refuse("synthetic", f"makes up its own records, and {task} reads some", "Set task=lm")
        if not data.records:
            raise data.refuse("records", f"must be true for {task}: a row holds whole records", "Set data.records=true")
        if not model.document_mask:
            rule = f"must be true for {task}: no record sees another"
            raise model.refuse("document_mask", rule, "Set model.document_mask=true")
        if data.cache:
            raise data.refuse("cache", f"must be false for {task}: records are kept as text", "Set data.cache=false")
        for name, corpus in data.corpora.items():
            if corpus.join > 1:
                raise corpus.refuse("join", f"must be 1 for {task}: a row is a record", f"Set data.corpora.{name}.join=1")
