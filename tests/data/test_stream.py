"""The stream is the same for any number of ranks and workers, goes on where it was, and deals every document once an epoch."""

import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2_lightning.data.blocks import validation_blocks
from gpt2_lightning.data.loader import Batch, TrainLoader
from gpt2_lightning.data.stream import IGNORED, DataConfig, StreamDataModule
from gpt2_lightning.errors import CheckpointError, DataError, MachineError
from gpt2_lightning.settings.augment import AugmentConfig, LengthConfig, NoiseConfig, ReverseConfig, SwapConfig
from gpt2_lightning.settings.data import CorpusConfig
from tests.conftest import Command

SHAKESPEARE = {"shakespeare": CorpusConfig(path="bundled:shakespeare.jsonl")}
ALL = AugmentConfig(length=LengthConfig(p=0.3), reverse=ReverseConfig(p=0.3), swap=SwapConfig(p=0.3), noise=NoiseConfig(p=0.3))
ROWS = 8


def write_corpora(folder: Path) -> dict[str, CorpusConfig]:
    """One corpus of one file, one of eight."""
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "Mr.",
        "Fox.",
        "'Who",
        "is",
        "it?'",
        "it",
        "said;",
        "nobody",
        "knew.",
    ]
    random = np.random.default_rng(0)

    def sentence(n: int) -> str:
        return " ".join(random.choice(words, n)) + "."

    (folder / "one.txt").write_text("\n".join(f"{n} {sentence(random.integers(1, 60))}" for n in range(400)))
    for i in range(8):
        (folder / f"many{i}.txt").write_text("\n\n".join(f"{i}.{n} {sentence(random.integers(1, 90))}" for n in range(60)))
    return {
        "one": CorpusConfig(path=str(folder / "one.txt"), split="line", weight=0.3),
        "many": CorpusConfig(path=str(folder / "many*.txt"), split="blank_line", weight=0.7, epochs=None),
    }


def write_mix(folder: Path, weight: float) -> None:
    """The two corpora as ``data=mix``."""
    corpora = {
        "one": {"path": "one.txt", "split": "line"},
        "many": {"path": "many*.txt", "split": "blank_line", "weight": weight},
    }
    (folder / "conf/data").mkdir(parents=True)
    (folder / "conf/data/mix.yaml").write_text(json.dumps({"tokenizer": "bytes", "corpora": corpora}))


def module(corpora: dict[str, CorpusConfig], ranks: int = 1, steps: int = 12, **options: object) -> StreamDataModule:
    augment = options.pop("augment", ALL)
    seed = options.pop("seed", 0)
    config = {"corpora": corpora, "tokenizer": "bytes", "batch_size": ROWS // ranks} | options
    data = StreamDataModule(DataConfig(**config), block_size=32, seed=seed, max_steps=steps, augment=augment)
    data.setup()
    return data


def joined(parts: list[Iterator[Batch]], steps: int) -> list[tuple[torch.Tensor, ...]]:
    """The ranks' batches, as the steps' global batches."""
    found = []
    for _ in range(steps):
        batches = [[x for x in next(part) if x is not None] for part in parts]
        found.append(tuple(torch.cat(same) for same in zip(*batches, strict=True)))
    return found


def equal(a: list[tuple[torch.Tensor, ...]], b: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )


def straight(corpora: dict[str, CorpusConfig], steps: int, **options: object) -> list[tuple[torch.Tensor, ...]]:
    return joined([iter(module(corpora, steps=steps, **options).rank_loader(1, 0))], steps)


@pytest.mark.parametrize(("workers", "ranks"), [(1, 1), (2, 1), (3, 1), (0, 2), (0, 4), (2, 2)])
def test_workers_and_ranks_change_nothing(here: Path, workers: int, ranks: int) -> None:
    corpora = write_corpora(here)
    data = module(corpora, ranks, workers=workers)
    assert equal(joined([iter(data.rank_loader(ranks, r)) for r in range(ranks)], 12), straight(corpora, 12))


@pytest.mark.slow
def test_the_data_command_gives_one_digest_for_any_workers_and_ranks(here: Path, command: Command) -> None:
    """Real processes, all augmentations; a hundred batches of two ways."""
    write_corpora(here)
    write_mix(here, weight=2)
    words = ("data", "model=nano", "data=mix", "augment=all", "data.batch_size=8")

    def digest(*more: str) -> str:
        done = command(*words, *more, cwd=here)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert digest("n=100") == digest("n=100", "ranks=2", "workers=2")
    ways = [f"workers={n}" for n in range(4)] + ["ranks=4"]
    assert len({digest("n=50", way) for way in ways}) == 1
    assert digest("n=5", "seed=1") != digest("n=5") != digest("n=5", "skip=1")


def test_the_data_command_shows_what_there_is(here: Path, command: Command) -> None:
    write_corpora(here)
    write_mix(here, weight=3)
    done = command("data", "data=mix", "augment=swap", "n=20", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "one                          360        40" in done.stdout
    assert "many                         432        48" in done.stdout
    assert "75.0%" in done.stdout
    assert "swap, strength 0.1, to 50% of the documents" in done.stdout
    assert "[-" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("digest ")
    for words, message in (
        (["n=0"], "n (n = 0): must be an integer, at least 1"),
        (["n=many"], "must be an integer"),
        (["ranks=3"], "must divide the 8 rows of a step"),
        (["data=mixx"], "There are mix"),
        (["workers=-1"], "must be an integer, at least 0"),
    ):
        done = command("data", *words, cwd=here)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_accumulation_changes_nothing(here: Path) -> None:
    corpora = write_corpora(here)
    data = module(corpora, 4, steps=6)
    data.accumulate = 4
    parts = list(data.rank_loader(1, 0))
    steps = [tuple(torch.cat(same) for same in zip(*parts[i : i + 4], strict=True)) for i in range(0, 24, 4)]
    assert equal(steps, straight(corpora, 6))


def test_another_seed_gives_other_batches(here: Path) -> None:
    corpora = write_corpora(here)
    assert not equal(straight(corpora, 3), straight(corpora, 3, seed=1))


def test_a_cache_of_tokens_changes_nothing(here: Path) -> None:
    corpora = write_corpora(here)
    for tokenizer in ("bytes", "gpt2"):
        assert equal(
            straight(corpora, 12, tokenizer=tokenizer, weigh="documents"),
            straight(corpora, 12, tokenizer=tokenizer, weigh="documents", cache=True),
        )


def state_after(loaders: list[TrainLoader], steps: int, cycle: int = 1) -> dict[str, object]:
    """What a checkpoint would hold."""
    places = np.concatenate([loader.kept[steps * cycle] for loader in loaders])
    return {"step": steps, "places": torch.from_numpy(places), "order": {}, "corpora": {}}


def go_on(corpora: dict[str, CorpusConfig], state: dict[str, object], stop: int, ranks: int, workers: int):
    """Batches from the state to ``stop``, and the state there; Lightning asks for one batch more than it trains on."""
    data = module(corpora, ranks, steps=10_000, workers=workers)
    data.resumed = state
    loaders = [data.rank_loader(ranks, r) for r in range(ranks)]
    parts = [iter(loader) for loader in loaders]
    found = joined(parts, stop - state["step"])
    for part in parts:
        next(part)
    return found, state_after(loaders, stop)


START = {"step": 0, "skipped": 0, "places": torch.zeros(ROWS, 2, dtype=torch.int32), "order": {}, "corpora": {}}


@pytest.mark.parametrize(
    "stages",
    [
        [(1, 1, 0), (2, 1, 0), (3, 1, 0), (9, 1, 0)],
        [(7, 1, 0), (14, 1, 0), (21, 1, 0), (30, 1, 0)],
        [(100, 1, 0), (200, 1, 0), (300, 1, 0), (310, 1, 0)],
        [(1000, 1, 0), (2000, 1, 0), (3000, 1, 0), (3010, 1, 0)],
        [(7, 2, 2), (20, 1, 0), (33, 4, 1), (40, 2, 0)],
        [(100, 1, 3), (150, 4, 1), (170, 2, 2)],
    ],
)
def test_a_resumed_stream_equals_the_uninterrupted_one(here: Path, stages: list[tuple[int, int, int]]) -> None:
    corpora = write_corpora(here)
    whole = straight(corpora, stages[-1][0])
    found, state = [], START
    for stop, ranks, workers in stages:
        more, state = go_on(corpora, state, stop, ranks, workers)
        found += more
    assert equal(found, whole)


def test_the_state_is_small_plain_data(here: Path) -> None:
    data = module(write_corpora(here))
    data.config.batch_size = 512
    loader = data.rank_loader(1, 0)
    next(iter(loader))
    state = state_after([loader], 1) | {"corpora": data.fingerprints()}
    file = io.BytesIO()
    torch.save(state, file)
    assert len(file.getvalue()) < 16_000
    file.seek(0)
    assert torch.load(file, weights_only=True)["step"] == 1


def test_each_document_comes_exactly_once_an_epoch_through_a_stop(here: Path) -> None:
    """A ledger over the documents' own numbers, read off the batches themselves."""
    (here / "a.txt").write_text("\n".join(f"<{n}>" for n in range(500)))
    corpora = {"a": CorpusConfig(path="a.txt", split="line", holdout_every=10**6, epochs=3)}
    (here / "v.txt").write_text("v")
    corpora["a"].validation = "v.txt"
    first, state = go_on_plain(corpora, None, 20)
    second, _ = go_on_plain(corpora, state, None)
    assert state is not None
    lanes = torch.cat([targets for _, targets, *_ in first + second], 1)
    text = "".join(bytes(t for t in lane.tolist() if 0 <= t < 256).decode() for lane in lanes)
    assert Counter(text.removeprefix("<").removesuffix(">").split("><")) == {str(n): 3 for n in range(500)}


def go_on_plain(corpora: dict[str, CorpusConfig], state: dict[str, object] | None, stop: int | None):
    """Without augmentation, to ``stop`` or to the end of the corpora."""
    data = module(corpora, steps=10_000, augment=AugmentConfig())
    data.resumed = state
    loader = data.rank_loader(1, 0)
    found = []
    for batch in loader:
        found.append((batch.inputs, batch.targets))
        if len(found) == stop or loader.ended:
            break
    return found, state_after([loader], (state["step"] if state else 0) + len(found))


@pytest.mark.parametrize(("accumulate", "rows"), [(1, 8), (4, 2)])
def test_the_end_comes_with_the_last_step_that_has_text(here: Path, accumulate: int, rows: int) -> None:
    (here / "a.txt").write_text("\n".join("word " * (n % 37 + 1) for n in range(200)))
    corpora = {"a": CorpusConfig(path="a.txt", split="line", epochs=1)}
    data = module(corpora, steps=10_000, augment=AugmentConfig(), batch_size=rows)
    data.accumulate = accumulate
    loader = data.rank_loader(1, 0)
    counted = []
    for batch in loader:
        counted.append(int((batch.targets != IGNORED).sum()))
        if loader.ended:
            break
    documents = data.corpora["a"]["train"]
    assert sum(counted) == documents.elements(len(documents)) + len(documents)  # each with its end-of-text
    assert sum(counted[-accumulate:]) > 0
    assert len(counted) % accumulate == 0


def test_documents_of_the_corpus_are_counted_not_their_segments(here: Path) -> None:
    (here / "a.txt").write_text("\n".join(f"{n} " + "long " * 400 for n in range(30)))
    corpora = {"a": CorpusConfig(path="a.txt", split="line", documents=3, epochs=1)}
    data = module(corpora, segment_characters=256)
    assert len(data.corpora["a"]["train"]) > 100
    assert data.read.mixture.sizes == [data.corpora["a"]["train"].first(3)]
    texts = [data.corpora["a"]["train"].text(i) for i in range(data.read.mixture.sizes[0])]
    assert "".join(texts) == "".join(f"{n} " + "long " * 400 for n in range(3))


def test_recall_goes_on_from_its_place() -> None:
    whole = joined([iter(module({}, synthetic="recall").rank_loader(1, 0))], 6)
    data = module({}, synthetic="recall")
    loader = data.rank_loader(1, 0)
    joined([iter(loader)], 3)
    data.resumed = state_after([loader], 3)
    assert equal(joined([iter(data.rank_loader(1, 0))], 3), whole[3:])


def test_places_far_away_are_reached_at_once(here: Path) -> None:
    corpora = write_corpora(here)
    data = module(corpora, steps=10**7)
    data.resumed = START | {
        "step": 10**6,
        "places": torch.full((ROWS, 2), 200_000, dtype=torch.int32) * torch.tensor([1, 0], dtype=torch.int32),
    }
    batch = next(iter(data.rank_loader(1, 0)))
    assert batch.inputs.shape == (ROWS, 32)


def test_shares_of_the_tokens_are_the_weights_within_a_point(here: Path) -> None:
    corpora = write_corpora(here)
    data = module(corpora, steps=1500, weigh="tokens", augment=AugmentConfig())
    loader = data.rank_loader(1, 0)
    corpora_of = torch.cat([batch.corpora.flatten() for batch in loader])
    assert loader.counts["documents"] > 2000
    assert (corpora_of == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_augmentations_are_applied_as_often_as_asked(here: Path) -> None:
    data = module(write_corpora(here), steps=3000)
    loader = data.rank_loader(1, 0)
    for _ in loader:
        pass
    for name in ("length", "reverse", "swap", "noise"):
        assert loader.counts[f"augment/{name}"] / loader.counts["documents"] == pytest.approx(0.3, rel=0.1)


def test_one_corpus_can_be_augmented_and_another_not(here: Path) -> None:
    corpora = write_corpora(here)
    corpora["many"].augment = AugmentConfig(noise=NoiseConfig(p=1.0, strength=1.0, unit="tokens"))
    data = module(corpora, augment=AugmentConfig())
    for batch in data.rank_loader(1, 0):
        inputs, targets = batch.inputs[:, 1:], batch.targets[:, :-1]
        same = inputs == targets
        ends = targets == 256
        assert same[(batch.corpora[:, :-1] == 0)].all()
        assert not same[(batch.corpora[:, :-1] == 1) & ~ends].any()
        assert (targets[~ends] < 128).all()  # labels are clean text


def test_augmentation_can_be_kept_from_one_corpus(here: Path) -> None:
    corpora = write_corpora(here)
    corpora["one"].augmented = False
    augment = AugmentConfig(noise=NoiseConfig(p=1.0, strength=1.0, unit="tokens"))
    for batch in module(corpora, augment=augment).rank_loader(1, 0):
        same = batch.inputs[:, 1:] == batch.targets[:, :-1]
        assert same[batch.corpora[:, :-1] == 0].all()
        assert not same[batch.corpora[:, :-1] == 1].all()


def test_validation_is_never_augmented(here: Path) -> None:
    corpora = write_corpora(here)
    plain, changed = module(corpora, augment=AugmentConfig()), module(corpora)
    for a, b in zip(plain.validation, changed.validation, strict=True):
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])


def test_a_corpus_of_weight_0_is_validated_and_not_trained_on(here: Path) -> None:
    corpora = write_corpora(here)
    corpora["one"].weight = 0.0
    data = module(corpora)
    assert all((batch.corpora == 1).all() for batch in data.rank_loader(1, 0))
    assert len(data.val_dataloader()[0]) > 0


def test_validation_predicts_every_token_once_in_order() -> None:
    documents = [np.arange(5), np.arange(5, 14), np.arange(14, 17)]
    inputs, targets = validation_blocks("a", iter(documents), 8, 777)
    assert targets[targets >= 0].tolist() == list(range(17))
    assert inputs[0, 0] == 777
    assert (targets[-1, 1:] == IGNORED).all()


def test_batches_are_inputs_and_the_tokens_after_them(here: Path) -> None:
    data = module(SHAKESPEARE, augment=AugmentConfig(), steps=5)
    got = list(data.train_dataloader())
    assert len(got) == len(data.train_dataloader()) == 5
    for x, y, corpora in got:
        assert x.shape == y.shape == (8, 32)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert corpora is None


def test_validation_batches_are_whole_and_dealt_out(here: Path) -> None:
    data = module(SHAKESPEARE)
    whole = torch.cat([y for _, y, _ in data.val_dataloader()[0]])
    inputs, targets = data.validation[0]
    parts = [data.deal(inputs, targets, 2, rank) for rank in (0, 1)]
    both = sum(int((y != IGNORED).sum()) for part in parts for _, y, _ in part)
    assert both == int((whole != IGNORED).sum()) == int((targets >= 0).sum())
    assert abs(len(parts[0]) - len(parts[1])) <= 1


def test_recall_asks_for_the_digit_only() -> None:
    data = module({}, synthetic="recall")
    x, y, _ = next(iter(data.train_dataloader()))
    assert ((y != IGNORED).sum(1) == 1).all()
    for row, answer in zip(x, y[:, -1], strict=True):
        digits = [i for i, t in enumerate(row.tolist()) if chr(t).isdigit()]
        assert len(digits) == 1
        assert digits[0] <= 8
        assert row[digits[0]] == answer
        assert row[-1] == ord("?")


def test_overfit_repeats_the_first_batch(here: Path) -> None:
    for workers in (0, 2):
        xs = [x for x, *_ in module(SHAKESPEARE, overfit=True, workers=workers, steps=4).train_dataloader()]
        assert all(torch.equal(xs[0], x) for x in xs)


def test_too_little_text_is_refused_with_both_numbers(here: Path) -> None:
    (here / "a.txt").write_text("ab\ncd\nef\ngh")
    with pytest.raises(DataError, match="holds 9 tokens for training, and one block needs 33"):
        module({"a": CorpusConfig(path="a.txt", split="line", holdout_every=4)})
    (here / "a.txt").write_text("x" * 99)
    with pytest.raises(DataError, match="no document is left for validation"):
        module({"a": CorpusConfig(path="a.txt")})


def test_a_corpus_without_text_is_named(here: Path) -> None:
    (here / "a.txt").write_text("\n \n")
    corpora = write_corpora(here) | {"empty": CorpusConfig(path="a.txt", split="line")}
    with pytest.raises(DataError, match="corpora = empty.*holds no document"):
        module(corpora)


def test_more_workers_than_rows_are_said_to_be_idle(here: Path) -> None:
    data = module(SHAKESPEARE, workers=20, steps=2)
    assert any("12 of 20 workers" in warning for warning in data.warnings)
    assert len(list(data.rank_loader(1, 0))) == 2


def test_what_a_worker_meets_is_raised_as_it_is(here: Path) -> None:
    data = module(write_corpora(here), workers=2, steps=10_000)
    loader = data.rank_loader(1, 0)
    batches = iter(loader)
    next(batches)
    for file in here.glob("outputs/cache/*/train.bin"):
        os.truncate(file, 10)
    with pytest.raises(DataError, match="cut short while it was read"):
        for _ in batches:
            pass


def test_a_killed_worker_is_named(here: Path) -> None:
    batches = iter(module(SHAKESPEARE, workers=2, steps=100_000).rank_loader(1, 0))
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(MachineError, match=r"data worker.*\(pid"):
        for _ in batches:
            pass


def test_a_worker_killed_while_it_hands_a_batch_over_is_named(here: Path) -> None:
    others = multiprocessing.active_children()
    batches = iter(module(SHAKESPEARE, workers=1, steps=100_000, batch_size=4096).rank_loader(1, 0))
    next(batches)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    time.sleep(1.0)  # a batch is larger than a pipe: it now waits in the middle of one
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(MachineError, match=rf"data worker.*\(pid.* {worker.pid}\)"):
        for _ in batches:
            pass


def test_a_changed_corpus_or_another_batch_is_noticed(here: Path) -> None:
    corpora = write_corpora(here)
    data = module(corpora)
    state = START | {"corpora": data.fingerprints(), "order": data.order()}
    data.load_state_dict(state)
    for options, message in (
        ({"seed": 1}, "seed: was 0 when the checkpoint was saved and is 1 now"),
        ({"weigh": "tokens"}, "data.weigh: was documents"),
        ({"shuffle_documents": 1}, "data.shuffle_documents: was 1048576"),
        ({"augment": AugmentConfig()}, "data.corpora.one.augment.length.p: was 0.3 .* is 0.0 now"),
    ):
        with pytest.raises(CheckpointError, match=message):
            module(corpora, **options).load_state_dict(state)
    with pytest.raises(CheckpointError, match="data.corpora: was one, many"):
        module(dict(reversed(corpora.items()))).load_state_dict(state)
    with pytest.raises(CheckpointError, match="rows a step: was 8 when the checkpoint was saved and is 4 now"):
        module(corpora, batch_size=4).load_state_dict(state)
    (here / "one.txt").write_text((here / "one.txt").read_text().replace("cat", "dog"))
    with pytest.raises(CheckpointError, match="text of one: was .* Restore the corpus, or set data.accept_changes=true"):
        module(corpora).load_state_dict(state)
    module(corpora, accept_changes=True).load_state_dict(state)
