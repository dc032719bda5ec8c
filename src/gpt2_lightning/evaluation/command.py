"""The ``evaluate`` command: a decoder and a protocol in; a table on the screen, JSON, and scalars in the run's TensorBoard out.

One number: 1 table, whatever the protocol: a row for each corpus, or one for the protocol's records.
Choice not taken: an event file beside that of a run in training: TensorBoard would read on in the newer one alone.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gpt2_lightning.board import open_board
from gpt2_lightning.checkpoint import read_manifest
from gpt2_lightning.config import compose_config, from_plain
from gpt2_lightning.data.hub import hub_rows
from gpt2_lightning.data.tokens import Tokenizer
from gpt2_lightning.errors import ConfigError, DataError
from gpt2_lightning.evaluation.perplexity import Measured, measure, text_figures
from gpt2_lightning.evaluation.protocols import HELLASWAG, LAMBADA, Protocol, encode_pair
from gpt2_lightning.evaluation.records import corpora_texts, file_texts, local_records
from gpt2_lightning.evaluation.score import score
from gpt2_lightning.evaluation.task import judge_task
from gpt2_lightning.folder import write_whole
from gpt2_lightning.generation.text import tokenizer_of
from gpt2_lightning.lock import living_holder
from gpt2_lightning.pretrained import Opened, open_decoder
from gpt2_lightning.settings.data import CorpusConfig, DataConfig
from gpt2_lightning.settings.evaluate import EvaluateConfig

__all__ = ["evaluate", "judge_records", "judge_texts"]

AT_ONCE = 64  # records scored together
OF_RECORDS = {"lambada": LAMBADA, "hellaswag": HELLASWAG}

Figures = dict[str, int | float]


def evaluate(config: EvaluateConfig, words: Sequence[str] = ()) -> None:
    """Judge what the settings ask for, show it, and keep it; ``words`` change those of the task. Raises PlatformError."""
    began = time.monotonic()
    opened = open_decoder(config.run, Path(config.outputs), config.accelerator)
    tokenizer = tokenizer_of(opened.decoder)
    shown, details = "", {}
    if config.task is not None:
        judged, n = judge_task(config, list(words), opened, tokenizer)
        figures = {f"task/{config.task}": judged.measures | {"records": n}}
        shown, details = judged.text, judged.details
    elif config.protocol == "perplexity":
        texts = read_texts(config, opened, tokenizer)
        figures = judge_texts(opened, tokenizer, texts, config)
    else:
        protocol = OF_RECORDS[config.protocol]
        figures = {config.protocol: judge_records(opened, tokenizer, protocol, config)}
    result = details | described(config, opened, figures) | {"seconds": round(time.monotonic() - began, 3)}
    if config.out is not None:
        write_whole(Path(config.out), json.dumps(result, indent=2) + "\n")
    print(table(figures, headline(config, result)) + (f"\n\n{shown}" if shown else ""))
    show_on_board(opened, figures)


def read_texts(config: EvaluateConfig, opened: Opened, tokenizer: Tokenizer) -> dict[str, list[np.ndarray]]:
    """By corpus the documents' tokens: of files, a data option, or the run's own corpora; raises PlatformError."""
    if config.path is not None:
        corpus = CorpusConfig(path=config.path, field=config.field, split=config.split)
        found = {Path(config.path).stem.strip("*?[]") or "text": file_texts(corpus, tokenizer, config.limit)}
    else:
        found = corpora_texts(
            validation_data(config, opened, tokenizer), Path(config.outputs) / "cache", tokenizer, config.limit
        )
    for name, texts in found.items():
        if not sum(map(len, texts)):
            raise DataError("corpus", key="corpus", value=name, rule="holds no text to evaluate on")
    return found


def validation_data(config: EvaluateConfig, opened: Opened, tokenizer: Tokenizer) -> DataConfig:
    """The settings of the corpora whose validation text is read, in the decoder's tokens; raises ConfigError."""
    if config.data is not None:
        of_decoder = [f"data.tokenizer={tokenizer.name}", f"model.vocab_size={tokenizer.vocab_size}"]
        data = compose_config([f"data={config.data}", *of_decoder]).data
    elif opened.config:
        data = from_plain(opened.config).data
    else:
        rule = f"'{config.run}' is no run of ours, with corpora of its own"
        raise ConfigError("text", key="path", value="", rule=rule, remedy="Set path=FILE or data=NAME")
    if data.synthetic is not None:
        rule = f"the run's own data, {data.synthetic}, is made up and no text"
        raise ConfigError("text", key="data", value=data.synthetic, rule=rule, remedy="Set path=FILE or data=NAME")
    return replace(data, tokenizer=tokenizer.name)


def judge_texts(
    opened: Opened, tokenizer: Tokenizer, corpora: Mapping[str, list[np.ndarray]], config: EvaluateConfig
) -> dict[str, Figures]:
    """The figures of each corpus and, of several, of all together; raises ConfigError where the stride skips tokens."""
    decoder, end = opened.decoder, tokenizer.end_of_text
    stride = decoder.config.block_size if config.stride is None else config.stride
    if stride > decoder.config.block_size:
        raise config.refuse("stride", f"must be at most the context, {decoder.config.block_size}")
    joined = config.documents == "joined"
    found: dict[str, Measured] = {}
    for name, documents in corpora.items():
        texts = [np.concatenate([part for text in documents for part in (text, [end])])] if joined else documents
        total = sum(map(len, texts))
        with tqdm(desc=name, total=total, unit="token", unit_scale=True, delay=3, leave=False) as bar:
            found[name] = measure(decoder, texts, end, tokenizer.token_bytes(), stride, config.batch_size, bar.update)
    figures = {name: text_figures(measured) for name, measured in found.items()}
    if len(found) > 1:
        figures["all"] = text_figures(*found.values())
    return figures


def judge_records(opened: Opened, tokenizer: Tokenizer, protocol: Protocol, config: EvaluateConfig) -> Figures:
    """The figures of a protocol over its records; raises DataError."""
    if config.path is not None:
        records = local_records(config.path, config.limit)
    else:
        records = list(islice(hub_rows(config.hub or protocol.hub, protocol.part), config.limit))
    if not records:
        raise DataError("records", key="path", value=config.path or config.hub or protocol.hub, rule="there are none")
    judged: list[Figures] = []
    requests = [protocol.requests(record, place) for place, record in records]  # a wrong one is told before any is scored
    for first in tqdm(range(0, len(records), AT_ONCE), delay=3, leave=False):
        some = slice(first, first + AT_ONCE)
        pairs = [encode_pair(tokenizer, *request) for asked in requests[some] for request in asked]
        scores = iter(scored(opened, pairs, config.batch_size))
        for (_, record), asked in zip(records[some], requests[some], strict=True):
            judged.append(protocol.judge(record, [next(scores) for _ in asked]))
    return protocol.summary(judged) | {"records": len(records)}


def scored(opened: Opened, pairs: list[tuple[list[int], list[int]]], batch_size: int) -> list[Any]:
    """The scores of pairs of tokens; raises DataError where one does not fit the context."""
    try:
        return score(opened.decoder, [context for context, _ in pairs], [tokens for _, tokens in pairs], batch_size)
    except ValueError as error:
        raise DataError("record", rule=str(error)) from error


def described(config: EvaluateConfig, opened: Opened, figures: dict[str, Figures]) -> dict[str, Any]:
    """What was judged, how, and what came out, as JSON has it: without infinities."""
    step = read_manifest(opened.checkpoint)["step"] if opened.checkpoint else None
    shape = {"step": step, "block_size": opened.decoder.config.block_size, "vocab_size": opened.decoder.config.vocab_size}
    finite = {name: {k: v if math.isfinite(v) else None for k, v in of.items()} for name, of in figures.items()}
    settings = {key: value for key, value in asdict(config).items() if key not in ("run", "out", "outputs")}
    return {"run": config.run, "checkpoint": opened.checkpoint and str(opened.checkpoint), **shape,
            "settings": settings, "figures": finite, "torch": str(torch.__version__)}  # fmt: skip


def headline(config: EvaluateConfig, result: dict[str, Any]) -> str:
    """What the table is of."""
    step = "" if result["step"] is None else f" at step {result['step']}"
    if config.task is not None:
        return f"{config.run}{step}: task={config.task}"
    how = f", stride {config.stride or result['block_size']} of {result['block_size']}, documents {config.documents}"
    return f"{config.run}{step}: {config.protocol}{how if config.protocol == 'perplexity' else ''}"


def table(figures: Mapping[str, Figures], title: str) -> str:
    """Rows by corpus or protocol, a column a figure."""
    columns = list(next(iter(figures.values())))
    rows = [["", *(name.replace("_", " ") for name in columns)]]
    for name, of in figures.items():
        rows.append([name, *(f"{of[key]:,}" if isinstance(of[key], int) else f"{of[key]:,.4f}" for key in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([title, *lines])


def show_on_board(opened: Opened, figures: Mapping[str, Figures]) -> None:
    """The figures as scalars of the run at the checkpoint's step, where the run is ours and nobody trains it now."""
    run = opened.checkpoint.parents[1] if opened.checkpoint else None
    if run is None or opened.checkpoint is None or not (run / "config.yaml").is_file():
        return
    if living_holder(run) is not None:
        print(f"warning: '{run}' is in training, so its TensorBoard does not get these figures", file=sys.stderr)
        return
    scalars = {f"evaluate/{name}/{key}": value for name, of in figures.items() for key, value in of.items()}
    finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
    try:
        board = open_board(run / "tensorboard")
        board.scalars(finite, read_manifest(opened.checkpoint)["step"])
        board.close()
    except OSError as error:
        print(f"warning: TensorBoard does not get these figures: {error}", file=sys.stderr)
