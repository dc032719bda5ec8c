"""The source: a DataConfig in; for every draw of the stream, the passage it gives, out.

Opens the corpora, weighs them into a mixture, and turns a draw's document into tokens, augmented where that is asked for.
One number: 1, the documents that are read and tokenised to answer for any draw. Choice not taken: stages that hand documents
on in one order, whose state would have to be replayed to stand at a place.
"""

from functools import partial
from pathlib import Path

from gpt2_lightning.data.augment import Augmenter, expected_length
from gpt2_lightning.data.corpus import identity, read_corpus
from gpt2_lightning.data.documents import Documents
from gpt2_lightning.data.hub import hub_files, open_hub, read_hub
from gpt2_lightning.data.lanes import EndOfStream, Passage
from gpt2_lightning.data.mixture import Mixture
from gpt2_lightning.data.record import RecordDocuments
from gpt2_lightning.data.store import open_store
from gpt2_lightning.data.tokens import Tokenizer, load_tokenizer
from gpt2_lightning.errors import DataError, PlatformError
from gpt2_lightning.settings.augment import AugmentConfig
from gpt2_lightning.settings.data import CorpusConfig, DataConfig
from gpt2_lightning.tasks.task import Task

__all__ = ["Corpora", "Source", "close_corpora", "open_corpora", "own_augmentation", "used_documents"]

HUB_WINDOW = 16_384  # documents within which a hub data set is shuffled: those of a few row groups
SAMPLED = 64  # documents whose tokens are counted to know how many a byte of the corpus has

Corpora = dict[str, dict[str, Documents]]  # by name, then ``train`` and ``validation``


def open_corpora(config: DataConfig, cache: Path, task: Task | None = None, block_size: int = 0) -> Corpora:
    """Every corpus, its store built where it is not there yet; raises DataError, and leaves nothing new then.

    Where the task is one of records, they come as RecordDocuments, cut to rows of ``block_size``.
    """
    opened: Corpora = {}
    try:
        for name, corpus in config.corpora.items():
            opened[name] = open_corpus(name, corpus, config, cache, task)
    except PlatformError:
        close_corpora(opened)
        raise
    if task is None or not task.config.of_records:
        return opened
    cut = task.config.cut
    return {n: {part: RecordDocuments(d, block_size, cut) for part, d in parts.items()} for n, parts in opened.items()}


def close_corpora(corpora: Corpora) -> None:
    """Remove what was built for a run that is refused."""
    for parts in corpora.values():
        parts["train"].discard()


def open_corpus(name: str, corpus: CorpusConfig, config: DataConfig, cache: Path, task: Task | None) -> dict[str, Documents]:
    """One corpus's training and validation documents; a hub data set is streamed, unless ``data.cache`` is on."""
    size, tokenizer = config.segment_characters, config.tokenizer if config.cache else None
    if corpus.hub is None:
        read = partial(read_corpus, corpus, size, task=task)
        return dict(open_store(name, read, identity(corpus, size, task), tokenizer, cache))
    if not config.cache:
        return dict(open_hub(corpus, task))
    files = {"files": hub_files(corpus), "holdout": [corpus.holdout_every, corpus.holdout_limit], "join": corpus.join}
    made_from = files | {"field": corpus.field, "segment_characters": size}
    return dict(open_store(name, partial(read_hub, corpus, size), made_from, tokenizer, cache))


class Source:
    """The passage of any draw: ``source(g)``. A callable that any process can make for itself."""

    def __init__(self, config: DataConfig, augment: AugmentConfig, corpora: Corpora, seed: int) -> None:
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.documents = [parts["train"] for parts in corpora.values()]
        self.augmenters = [Augmenter(own_augmentation(c, augment), self.tokenizer, seed) for c in config.corpora.values()]
        sizes = [used_documents(d, c) for d, c in zip(self.documents, config.corpora.values(), strict=True)]
        for (name, corpus), size in zip(config.corpora.items(), sizes, strict=True):
            if corpus.weight and not size:
                rule, remedy = "holds no document for training", "Give it text, or set its weight to 0"
                raise DataError("corpus", key="data.corpora", value=name, rule=rule, remedy=remedy)
        hub = any(corpus.hub is not None and not config.cache for corpus in config.corpora.values())
        window = min(config.shuffle_documents, HUB_WINDOW) if hub else config.shuffle_documents
        self.weights = draw_weights(config, self.documents, augment)
        epochs = [corpus.epochs for corpus in config.corpora.values()]
        self.mixture = Mixture(sizes, self.weights, epochs, seed, window)

    def __call__(self, g: int) -> Passage | None:
        """The passage of draw g, None where that draw has none; raises EndOfStream once every corpus has ended."""
        draw = self.mixture.draw(g)
        if draw is None:
            if self.mixture.end is not None and g >= self.mixture.end:
                raise EndOfStream
            return None
        documents, augmenter = self.documents[draw.corpus], self.augmenters[draw.corpus]
        drawn = augmenter.draw(draw.epoch, draw.corpus, draw.document)
        return documents.passage(draw.document, self.tokenizer, augmenter, drawn)._replace(corpus=draw.corpus)


def own_augmentation(corpus: CorpusConfig, augment: AugmentConfig) -> AugmentConfig:
    """The corpus's own augmentation where it has some, else the run's, or none."""
    if not corpus.augmented:
        return AugmentConfig()
    return corpus.augment if corpus.augment.active else augment


def used_documents(documents: Documents, corpus: CorpusConfig) -> int:
    """How many of a corpus's documents are trained on."""
    return documents.first(corpus.documents) if corpus.weight else 0


def draw_weights(config: DataConfig, documents: list[Documents], augment: AugmentConfig) -> list[float]:
    """The share of the draws each corpus gets: its weight, over its tokens a document where weights are shares of tokens."""
    weights = [corpus.weight for corpus in config.corpora.values()]
    if config.weigh == "documents" or len(weights) == 1:
        return weights
    tokenizer = load_tokenizer(config.tokenizer)
    lengths = [
        mean_tokens(d, used_documents(d, c), tokenizer) * expected_length(own_augmentation(c, augment)) if c.weight else 1.0
        for d, c in zip(documents, config.corpora.values(), strict=True)
    ]
    return [weight / length for weight, length in zip(weights, lengths, strict=True)]


def mean_tokens(documents: Documents, n: int, tokenizer: Tokenizer) -> float:
    """Tokens of one of the first n: counted where they are stored, else from their bytes and the tokens a byte of a sample."""
    if documents.tokenizer is not None or not n:
        return documents.elements(n) / max(1, n)
    chosen = {i * n // SAMPLED for i in range(SAMPLED)}
    if isinstance(documents, RecordDocuments):
        return sum(len(documents.tokens(i, tokenizer)) for i in chosen) / len(chosen)
    texts = [documents.text(i) for i in sorted(chosen)]
    tokens_per_byte = sum(len(tokenizer.encode(t)) for t in texts) / max(1, sum(len(t.encode()) for t in texts))
    return documents.elements(n) / n * tokens_per_byte + 1
