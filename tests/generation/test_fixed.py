"""Steps of fixed shape write what growing ones do, and can be replayed without their Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gpt2_lightning.generation.engine as engine
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError, MachineError
from gpt2_lightning.generation.engine import continue_tokens
from gpt2_lightning.generation.fixed import FixedCache, captured
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.sampler import prompt_keys
from gpt2_lightning.generation.text import generate
from gpt2_lightning.settings.sampler import SamplerConfig
from tests.generation.decoders import KINDS, prompts_of, small

BATCHES = {"full": ((3, 9, 1, 12, 13, 19, 11), (30, 20, 26, 7, 1, 24, 0)), "short": ((3, 6, 1, 2), (30, 4, 26, 9))}
SAMPLERS = [SamplerConfig(k=1), SamplerConfig(k=None, p=0.95, temperature=1.5, repetition_penalty=1.3, no_repeat_ngram=2)]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU that torch can use")


def written(
    decoder: Decoder, step: str, sampler: SamplerConfig, slide_by: int, batch: str
) -> tuple[list[list[int]], list[Tensor]]:
    """Texts of a ragged batch, of which rows end by limit and by two tokens, and the logits of each step."""
    lengths, limits = BATCHES[batch]
    prompts, seen = prompts_of(lengths, decoder.config.vocab_size), []
    keys = prompt_keys(3, prompts)
    texts = continue_tokens(
        decoder, prompts, list(limits), sampler, keys, lambda _, token: token in (2, 17), slide_by,
        lambda logits, _: seen.append(logits), step,
    )  # fmt: skip
    assert len(set(map(len, texts))) > 2
    return texts, seen


def assert_same(decoder: Decoder, sampler: SamplerConfig, slide_by: int, step: str = "fixed") -> None:
    for batch in BATCHES:
        texts, logits = written(decoder, "growing", sampler, slide_by, batch)
        fixed_texts, fixed_logits = written(decoder, step, sampler, slide_by, batch)
        assert fixed_texts == texts
        for found, expected in zip(fixed_logits, logits, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@contextmanager
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("slide_by", [1, 4, 12])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fixed_steps_write_what_growing_ones_do(kind: dict, slide_by: int, sampler: SamplerConfig) -> None:
    with unwritten_memory_is_nan():
        assert_same(small(**kind), sampler, slide_by)


class Recording(TorchDispatchMode):
    """What a CUDA graph keeps of a step: its operations and the tensors they read and write, and nothing of its Python."""

    def __init__(self, graph: "Graph") -> None:
        super().__init__()
        self.calls = graph.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not isinstance(out, bool | int | float), f"{func} waits for the device"
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            if isinstance(out, Tensor) and new.data_ptr() != out.data_ptr():
                out.copy_(new)


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[FixedCache]:
    """Steps are captured and replayed as on a GPU; the caches that were made."""
    made: list[FixedCache] = []

    def graph(graph: Graph, stream: Stream, capture_error_mode: str) -> Recording:
        return Recording(graph)

    names: dict[str, Callable[..., Any]] = {
        "CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream, "stream": nullcontext,
        "device": nullcontext,
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)

    class Captured(FixedCache):
        def __init__(self, decoder: Decoder, rows: int, columns: int) -> None:
            super().__init__(decoder, rows, columns)
            self.run = captured(self.forward, torch.device("cpu"))
            made.append(self)

    monkeypatch.setattr(engine, "FixedCache", Captured)
    return made


@pytest.mark.parametrize("slide_by", [1, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_step_replayed_without_its_python_is_the_same(pretended: list[FixedCache], kind: dict, slide_by: int) -> None:
    assert_same(small(**kind), SAMPLERS[1], slide_by)
    assert len(pretended) == len(BATCHES), "captured once, whatever ends or slides"


def test_a_step_asks_for_no_number_and_stays_on_its_device() -> None:
    """On the meta device there are no numbers, and another device's tensor is refused."""
    for kind in KINDS:
        cache = FixedCache(small(**kind), 3, 12)
        cache.decoder.to("meta")
        for name, value in vars(cache).items():
            if isinstance(value, Tensor):
                setattr(cache, name, value.to("meta"))
        assert cache.step(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, 29)


def test_rows_that_have_ended_change_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = FixedCache.forward
    monkeypatch.setattr(FixedCache, "forward", lambda self: (shapes.append(tuple(self.tokens.shape)), forward(self))[1])
    continue_tokens(small(), prompts_of((2, 2, 2)), [3, 1, 5], SAMPLERS[0], [0] * 3, step="fixed")
    assert shapes == [(3, 1)] * 4


def test_on_a_cpu_steps_grow_unless_fixed_ones_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, words = torch.tensor([[3, 4]]), {"sampler": SAMPLERS[0], "max_new_tokens": 5}
    expected = generate(small(), tokens, **words)
    assert torch.equal(generate(small(), tokens, **words, step="fixed"), expected)
    monkeypatch.delattr(engine, "FixedCache")
    assert torch.equal(generate(small(), tokens, **words), expected)
    with pytest.raises(NameError):
        generate(small(), tokens, **words, step="fixed")


def test_fixed_steps_are_refused_for_beam_search() -> None:
    with pytest.raises(ConfigError, match=r"step = fixed\): is not for beam search"):
        generate(small(), torch.tensor([[3, 4]]), sampler=SamplerConfig(beams=2), step="fixed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can capture")
def test_where_nothing_can_be_captured_the_error_says_so() -> None:
    with pytest.raises(MachineError, match=r"step = fixed\): cannot be captured as a CUDA graph: .*\. Set step=growing"):
        captured(lambda: torch.zeros(1), torch.device("cuda", 0))


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("slide_by", [1, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_cuda_graph_writes_what_growing_steps_do(kind: dict, slide_by: int) -> None:
    decoder = small(**kind).cuda()
    cache = FixedCache(decoder, 2, 12)
    assert cache.run != cache.forward, "captured"
    for sampler in SAMPLERS:
        assert_same(decoder, sampler, slide_by, "auto")


@GPU
@pytest.mark.gpu
def test_a_cuda_graph_takes_bfloat16() -> None:
    decoder = pack(small().cuda(), "bfloat16")
    (_, growing), (_, fixed) = (written(decoder, step, SAMPLERS[0], 1, "short") for step in ("growing", "fixed"))
    torch.testing.assert_close(fixed[1], growing[1], atol=0.1, rtol=0)
