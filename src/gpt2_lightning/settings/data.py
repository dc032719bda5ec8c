"""What is read, how it becomes tokens, and in which portions."""

from dataclasses import dataclass, field
from typing import ClassVar

from gpt2_lightning.settings.setting import Settings, setting

TOKENIZERS = {"gpt2": 50257, "bytes": 257}  # name: size of its vocabulary, end-of-text included
SPLITS = ("file", "line", "blank_line", "end_of_text")


@dataclass(kw_only=True, slots=True)
class CorpusConfig(Settings):
    """One corpus: where its documents are, and which of them are held out for validation."""

    group: ClassVar[str] = "data.corpora"

    path: str | None = setting(None, "file, glob, or bundled:NAME")
    hub: str | None = setting(None, "data set id on the hub")
    hub_config: str | None = setting(None, "configuration of the hub data set")
    revision: str | None = setting(None, "revision of the hub data set")
    validation: str | None = setting(None, "file or glob of the validation text (none: hold documents out)")
    holdout_every: int = setting(10, "every how manieth document is validation", at_least=2)
    holdout_limit: int | None = setting(None, "most documents held out (none: no limit)", at_least=1)
    field: str = setting("text", "JSONL or hub field that holds the text")
    split: str = setting("file", "what a document is in a text file", choices=SPLITS)
    invalid: str = setting("refuse", "what to do with invalid UTF-8", choices=("refuse", "replace"))

    def check_rules(self) -> None:
        """A corpus has one place to come from."""
        if (self.path is None) == (self.hub is None):
            raise self.refuse("path", "either path or hub must be set, not both", "Set data=local data.path=FILE")


@dataclass(kw_only=True, slots=True)
class DataConfig(Settings):
    """The stream. ``path``, ``validation`` and ``split`` are short for those of the corpus in ``data=local``."""

    group: ClassVar[str] = "data"

    path: str | None = setting(None, "file or glob of your text (with data=local)")
    validation: str | None = setting(None, "file or glob of your validation text (with data=local)")
    split: str = setting("file", "what a document is in your text file (with data=local)", choices=SPLITS)
    corpora: dict[str, CorpusConfig] = field(default_factory=dict)
    synthetic: str | None = setting(None, "made-up task in place of corpora", choices=("recall",))
    tokenizer: str = setting("gpt2", "tokenizer", choices=tuple(TOKENIZERS))
    batch_size: int = setting(8, "rows of one batch on one device", at_least=1)
    val_batches: int | None = setting(None, "most batches of a validation (none: all)", at_least=1)
    workers: int = setting(0, "processes that prepare batches (0: the training process)", at_least=0)
    shuffle_tokens: int = setting(16_777_216, "tokens within which documents and blocks are shuffled", at_least=1)
    overfit: bool = setting(False, "repeat the first batch, for debugging")

    def check_rules(self) -> None:
        """Exactly one thing is read; a mixture has its own place."""
        if self.synthetic is None and len(self.corpora) != 1:
            rule = "exactly one corpus must be given" if self.corpora else "no corpus was given"
            raise self.refuse("corpora", rule, "Set data=shakespeare, or data=local data.path=FILE")
