"""What is read, how it becomes tokens, and in which portions."""

import dataclasses
import re
from dataclasses import dataclass

from gpt2_lightning.settings.augment import AugmentConfig
from gpt2_lightning.settings.setting import Settings, setting

TOKENIZERS = {"gpt2": 50257, "bytes": 257}  # name: size of its vocabulary, end-of-text included
MOST_CORPORA = 256
SPLITS = ("file", "line", "blank_line", "end_of_text")


@dataclass(kw_only=True, slots=True)
class CorpusConfig(Settings, group="data.corpora"):
    """One corpus: where its documents are, which are held out for validation, and its part in the mixture."""

    path: str | None = setting(None, "file, glob, or bundled:NAME")
    hub: str | None = setting(None, "data set id on the hub")
    hub_config: str | None = setting(None, "configuration of the hub data set")
    revision: str | None = setting(None, "revision of the hub data set")
    validation: str | None = setting(None, "file or glob of the validation text (none: hold documents out)")
    holdout_every: int = setting(10, "every how manieth document is validation", at_least=2)
    holdout_limit: int | None = setting(None, "most documents held out (none: no limit)", at_least=1)
    field: str = setting("text", "JSONL, CSV, Parquet or hub field that holds the text")
    split: str = setting("file", "what a document is in a text file", choices=SPLITS)
    join: int = setting(1, "consecutive rows of a hub data set that make one document", at_least=1)
    invalid: str = setting("refuse", "what to do with invalid UTF-8", choices=("refuse", "replace"))
    documents: int | None = setting(None, "most documents to train on, the first there are (none: all)", at_least=1)
    weight: float = setting(
        1.0, "share in the mixture, relative to the other corpora (0: validation only)", at_least=0, at_most=1e9
    )
    epochs: int | None = setting(None, "times it is read before it ends (none: without end)", at_least=1)
    loss_weight: float = setting(1.0, "weight of its tokens in the training loss", at_least=0)
    augmented: bool = setting(True, "apply augmentation to it: its own where it has some, else the run's")
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def check_rules(self) -> None:
        """A corpus has one place to come from."""
        if (self.path is None) == (self.hub is None):
            raise self.refuse("path", "either path or hub must be set, not both", "Set data=local data.path=FILE")
        if self.hub is not None and self.validation is not None:
            raise self.refuse("validation", "a hub data set holds documents out", "Set holdout_every and holdout_limit")


@dataclass(kw_only=True, slots=True)
class DataConfig(Settings, group="data"):
    """The stream. ``path``, ``validation`` and ``split`` are short for those of the corpus in ``data=local``."""

    path: str | None = setting(None, "file or glob of your text (with data=local)")
    validation: str | None = setting(None, "file or glob of your validation text (with data=local)")
    split: str = setting("file", "what a document is in your text file (with data=local)", choices=SPLITS)
    corpora: dict[str, CorpusConfig] = dataclasses.field(default_factory=dict)
    weigh: str = setting("documents", "what the corpora's weights are shares of", choices=("documents", "tokens"))
    synthetic: str | None = setting(None, "made-up task in place of corpora", choices=("recall",))
    tokenizer: str = setting("gpt2", "tokenizer", choices=tuple(TOKENIZERS))
    cache: bool = setting(False, "tokenise once, into a file of 16-bit tokens")
    batch_size: int = setting(8, "rows of one batch on one device", at_least=1)
    val_batches: int | None = setting(None, "most batches of a validation (none: all)", at_least=1)
    workers: int = setting(0, "processes that prepare batches (0: the training process)", at_least=0)
    segment_characters: int = setting(16_384, "a longer document is read as several of about this length", at_least=256)
    shuffle_documents: int = setting(1_048_576, "documents within which the order is shuffled (1: stored order)", at_least=1)
    records: bool = setting(False, "rows of whole documents, padded: what does not fit begins the next row")
    accept_changes: bool = setting(False, "resume although a corpus is another than when the checkpoint was saved")
    overfit: bool = setting(False, "repeat the first batch, for debugging")

    def check_rules(self) -> None:
        """Something is read: a made-up task, or corpora of which one or more are trained on."""
        self.check_short_keys()
        if self.synthetic is not None:
            return
        if not self.corpora:
            raise self.refuse("corpora", "no corpus was given", "Set data=shakespeare, or data=local data.path=FILE")
        if len(self.corpora) > MOST_CORPORA:
            raise self.refuse("corpora", f"there are {len(self.corpora)}, and at most {MOST_CORPORA} are told apart")
        for name in self.corpora:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
                rule = f"'{name}' is no name: 1 to 64 letters, digits, '_', '-' or '.', the first a letter, digit or '_'"
                raise self.refuse("corpora", rule, "Give the corpus another name")
        if not any(corpus.weight for corpus in self.corpora.values()):
            names = ", ".join(self.corpora)
            raise self.refuse("corpora", "all weights are 0", f"Set data.corpora.NAME.weight=1 for one of {names}")

    def check_short_keys(self) -> None:
        """Refuse ``path``, ``validation`` and ``split`` where no corpus takes them over."""
        for name, unset in (("path", None), ("validation", None), ("split", "file")):
            value = getattr(self, name)
            if value != unset and all(getattr(corpus, name) != value for corpus in self.corpora.values()):
                raise self.refuse(name, "has no effect on these corpora", f"Set data=local, or data.corpora.NAME.{name}")
