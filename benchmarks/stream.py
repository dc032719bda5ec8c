"""How fast does text become batches, and tokens of a cache, beside tiktoken alone, `datasets`, and nanoGPT's loader?

In: documents of about 5 kB made of the bundled plays, on disk. Out: ratios of tokens a CPU second.
With --memory: the peak memory of reading a small corpus, a large one, and one with a line of 40 MB. With --resume: how long
the first batch takes at document 100,000, beside that at document 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import datasets
import numpy as np
import torch
from contest import contest, print_ratios, ratios, write_report
from torch import Tensor

from gpt2_lightning.data.corpus import Reading, read_corpus
from gpt2_lightning.data.stream import StreamDataModule
from gpt2_lightning.data.tokens import load_tokenizer
from gpt2_lightning.settings.augment import AugmentConfig, LengthConfig, NoiseConfig, ReverseConfig, SwapConfig
from gpt2_lightning.settings.data import CorpusConfig, DataConfig

BLOCK, BATCH = 1024, 12
BATCHES = {"text": 64, "cache": 1500}  # a contender's batches in a round: a fifth of a second or so
DOCUMENT_CHARACTERS = 5000
MAPPED = 50  # documents a call of `datasets`' maps: a twelfth of a round, so that every round pays for its own tokens
QUARTER = {"length": LengthConfig(p=0.25), "reverse": ReverseConfig(p=0.25), "swap": SwapConfig(p=0.25)}
ALL = AugmentConfig(**QUARTER, noise=NoiseConfig(p=0.25))  # augment=all
PAIRS = [
    ("tiktoken", "text"),
    ("tiktoken", "text_augmented"),
    ("datasets", "text"),
    ("datasets_arrays", "text"),
    ("nanogpt_cache", "cache"),
]
Batches = Iterator[tuple[Tensor, Tensor]]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count; one more is warm-up")
    parser.add_argument("--megabytes", type=int, default=20, help="size of the corpus")
    parser.add_argument("--memory", action="store_true", help="peak memory over corpora of several sizes, nothing else")
    parser.add_argument("--resume", action="store_true", help="the first batch far into a corpus, nothing else")
    parser.add_argument("--peak", type=Path, help="print the growth of memory over reading this corpus, in MiB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.peak:
            print(peak(args.peak, Path(folder)))
        elif args.resume:
            compare_resume(args, Path(folder))
        elif args.memory:
            measure_memory(Path(folder))
        else:
            compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """The contest and its report; the ratios are of tokens a second, ours over theirs: their seconds over ours."""
    path = folder / "corpus.jsonl"
    write_corpus(path, args.megabytes)
    seconds = contest(contenders(path), args.rounds)
    found = ratios(seconds, PAIRS)
    print("tokens a second, ours over theirs")
    print_ratios({f"{ours} / {theirs}": found[f"{theirs}/{ours}"] for theirs, ours in PAIRS})
    ours = ("text", "text_augmented", "cache")
    print("tokens a CPU second of this machine: " + ", ".join(f"{n} {1 / np.median(seconds[n]):,.0f}" for n in ours))
    write_report(args.json, vars(args), seconds_per_token=seconds, ratios=found)


def write_corpus(path: Path, megabytes: float) -> None:
    """Documents of the plays' scenes, over and over in another order each time."""
    pieces = read_corpus(CorpusConfig(path="bundled:shakespeare.jsonl"), DOCUMENT_CHARACTERS // 2, Reading())
    texts = [piece.text for piece in pieces]
    texts = ["".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]
    random, written = np.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            for i in random.permutation(len(texts)):
                written += file.write(json.dumps({"text": texts[i]}) + "\n")


def contenders(path: Path) -> dict[str, Callable[[], float]]:
    """Seconds a token of each."""
    cache = our_batches(path, cache=True)
    bin_file = next((path.parent / "cache").glob("*/train.bin"))
    return {
        "tiktoken": tiktoken_alone(path),
        "text": timed(our_batches(path), BATCHES["text"]),
        "text_augmented": timed(our_batches(path, augment=ALL), BATCHES["text"]),
        "datasets": timed(datasets_batches(path, list_maps()), BATCHES["text"]),
        "datasets_arrays": timed(datasets_batches(path, array_maps()), BATCHES["text"]),
        "cache": timed(cache, BATCHES["cache"]),
        "nanogpt_cache": timed(nanogpt_batches(bin_file), BATCHES["cache"]),
    }


def timed(batches: Batches, n: int) -> Callable[[], float]:
    """A contender: CPU seconds a token over its next ``n`` batches."""

    def play() -> float:
        started = time.process_time()
        tokens = sum(batch[1].numel() for batch in islice(batches, n))
        assert tokens == n * BATCH * BLOCK
        return (time.process_time() - started) / tokens

    return play


def our_batches(path: Path, cache: bool = False, augment: AugmentConfig | None = None) -> Batches:
    """The whole stream: store, draws, tokens, lanes, batches."""
    data = our_data(path, cache, augment)
    return ((batch.inputs, batch.targets) for batch in data.train_dataloader())


def our_data(path: Path, cache: bool = False, augment: AugmentConfig | None = None, accumulate: int = 1) -> StreamDataModule:
    """The data module over one corpus."""
    corpora = {"corpus": CorpusConfig(path=str(path), holdout_every=1000)}
    config = DataConfig(corpora=corpora, tokenizer="gpt2", batch_size=BATCH, cache=cache, val_batches=1)
    place = path.parent / ("cache" if cache else "text")
    shape = {"block_size": BLOCK, "seed": 0, "max_steps": 10**6, "accumulate": accumulate}
    data = StreamDataModule(config, augment=augment, cache=place, **shape)
    data.setup()
    return data


def tiktoken_alone(path: Path) -> Callable[[], float]:
    """Seconds a token of tokenising texts that lie in memory, and nothing else."""
    encoding = load_tokenizer("gpt2").encoding
    texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    place = 0

    def play() -> float:
        nonlocal place
        started, tokens = time.process_time(), 0
        while tokens < BATCHES["text"] * BATCH * BLOCK:
            tokens += len(encoding.encode_to_numpy(texts[place % len(texts)], disallowed_special=()))
            place += 1
        return (time.process_time() - started) / tokens

    return play


def datasets_batches(path: Path, maps: tuple[Callable[[dict], dict], Callable[[dict], dict]]) -> Batches:
    """Stream, map a tokenizer over the texts, map a grouping into blocks over the tokens; batches of those, in stored order."""
    while True:
        stream = datasets.load_dataset("json", data_files=str(path), split="train", streaming=True)
        stream = stream.map(maps[0], batched=True, batch_size=MAPPED, remove_columns=["text"])
        stream = stream.map(maps[1], batched=True, batch_size=MAPPED)
        for rows in stream.iter(BATCH, drop_last_batch=True):
            ids = torch.from_numpy(np.array(rows["ids"], np.int64))
            yield ids[:, :-1], ids[:, 1:]


def list_maps() -> tuple[Callable[[dict], dict], Callable[[dict], dict]]:
    """The usual recipe, that of transformers' run_clm: lists."""
    encoding = load_tokenizer("gpt2").encoding

    def tokenise(rows: dict) -> dict:
        return {"ids": [[*encoding.encode_ordinary(text), 50256] for text in rows["text"]]}

    def group(rows: dict) -> dict:
        joined = list(chain(*rows["ids"]))
        return {"ids": [joined[i : i + BLOCK + 1] for i in range(0, len(joined) - BLOCK, BLOCK)]}

    return tokenise, group


def array_maps() -> tuple[Callable[[dict], dict], Callable[[dict], dict]]:
    """The same with arrays all the way, as few write it."""
    encoding = load_tokenizer("gpt2").encoding

    def tokenise(rows: dict) -> dict:
        return {"ids": [np.append(encoding.encode_to_numpy(text, disallowed_special=()), 50256) for text in rows["text"]]}

    def group(rows: dict) -> dict:
        joined = np.concatenate(rows["ids"])
        return {"ids": [joined[i : i + BLOCK + 1] for i in range(0, len(joined) - BLOCK, BLOCK)]}

    return tokenise, group


def nanogpt_batches(path: Path) -> Batches:
    """nanoGPT's form: rows at uniform places of a mapped file, mapped anew for each batch."""
    while True:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - BLOCK, (BATCH,))
        x = torch.stack([torch.from_numpy(data[i : i + BLOCK].astype(np.int64)) for i in places])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in places])
        yield x, y


def compare_resume(args: argparse.Namespace, folder: Path) -> None:
    """Seconds to the first batch of 12 rows, of 480 a step, from its place in a corpus of 200,000 documents, augmented."""
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n} " + "word " * 100}) + "\n" for n in range(200_000)))

    def first_batch(document: int) -> float:
        started = time.perf_counter()
        data = our_data(path, augment=ALL, accumulate=40)
        places = torch.tensor([[document // 480, 7 if document else 0]] * 480, dtype=torch.int32)
        data.resumed = {"step": document, "places": places}
        next(iter(data.rank_loader(1, 0)))
        return time.perf_counter() - started

    seconds = contest({"far": lambda: first_batch(100_000), "start": lambda: first_batch(0)}, args.rounds)
    print(f"opening the corpus and the first batch: {np.median(seconds['far']):.3f} s at document 100,000")
    print_ratios(ratios(seconds, [("far", "start")]))


def measure_memory(folder: Path) -> None:
    """How much a process grows by opening a corpus and reading 200 batches, for corpora of different sizes."""
    for name, megabytes in (("small", 50), ("large", 1000)):
        write_corpus(folder / f"{name}.jsonl", megabytes)
        print(f"{name}, {megabytes} MB: {grown(folder / f'{name}.jsonl')} MiB", flush=True)
    (folder / "line.txt").write_text("word " * 8_000_000)
    print(f"one line of 40 MB: {grown(folder / 'line.txt')} MiB")


def grown(path: Path) -> str:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, __file__, "--peak", str(path)], check=True, capture_output=True, text=True
    ).stdout.strip()


def peak(path: Path, folder: Path) -> str:
    """The growth of this process's peak memory."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = "line" if path.suffix == ".txt" else "file"
    validation = folder / "validation.txt"
    validation.write_text("word " * 5000)
    corpora = {"corpus": CorpusConfig(path=str(path), split=split, validation=str(validation))}
    config = DataConfig(corpora=corpora, tokenizer="gpt2", batch_size=BATCH, val_batches=1)
    data = StreamDataModule(config, block_size=BLOCK, seed=0, max_steps=200, cache=folder)
    data.setup()
    assert len(list(islice(data.train_dataloader(), 200))) == 200
    return f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}"


if __name__ == "__main__":
    main()
