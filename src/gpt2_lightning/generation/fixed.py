"""A step of fixed shape: the next token of each row in, the logits behind it out, in the same memory each time.

Where a token goes is itself a tensor, and attention looks at all columns under a mask, so the whole step can be replayed as a
CUDA graph. One number: 1, its launch, instead of some fifteen a block, for which a GPU waits where rows are few.
Choice not taken: torch.compile(mode="reduce-overhead"), which makes the same graph after a minute of compiling.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt2_lightning.decoder import Cache, Decoder
from gpt2_lightning.errors import MachineError, first_line

__all__ = ["FixedCache"]

WARM_UPS = 3


class FixedCache(Cache):
    """A cache that takes the step itself. Rows that are not selected stay in it, and are worked out for nothing.

    On a GPU the step is captured here, over blanks; raises MachineError where it cannot be.
    """

    def __init__(self, decoder: Decoder, rows: int, columns: int) -> None:
        weight = decoder.wte.weight
        super().__init__(decoder.config, weight.new_zeros(rows, dtype=torch.long), columns, weight.dtype)
        self.held.zero_()  # what a mask hides still counts where it is nan
        self.length, self.padded = columns, True
        self.column = self.starts.new_zeros(1)
        self.tokens = self.starts.new_zeros(rows, 1)
        self.places = torch.arange(rows, device=weight.device)  # of the rows that go on
        self.decoder = decoder
        self.run: Callable[[], Tensor] = self.forward
        if weight.is_cuda:
            self.run = captured(self.forward, weight.device)

    def load(self, cache: Cache) -> "FixedCache":
        """Go on behind what another cache holds of the rows that go on; returns itself."""
        self.held[:, :, self.places, :, : cache.length] = cache.held[:, :, :, :, : cache.length]
        self.starts[self.places] = cache.starts
        self.column.fill_(cache.length)
        return self

    def step(self, tokens: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Add one token to each row that goes on; its logits are a copy, for the next step overwrites them."""
        self.tokens[self.places, 0] = tokens
        logits = self.run()[self.places]
        self.column += 1
        return logits

    def forward(self) -> Float[Tensor, "B V"]:
        """What is captured: it reads and writes nothing but tensors, and asks none for a number."""
        return self.decoder(self.tokens, self)[:, -1]

    def following(self, n: int) -> tuple[Int[Tensor, "T"], int]:
        """The column of the one next token; it attends to all."""
        return self.column, self.length

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of one token, ``[B, n_head, 1, head]``; returns all of the layer's."""
        keys, values = self.held[:, layer]
        return keys.index_copy_(2, self.column, k.detach()), values.index_copy_(2, self.column, v.detach())

    def select(self, rows: Int[Tensor, "B_new"]) -> None:
        """Go on with these rows alone, in this order; none may come twice, for each has but one place."""
        self.places = self.places[rows]


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as one launch (PyTorch's notes on CUDA semantics, "CUDA graphs"); its result is the same tensor each time.

    Libraries set themselves up by stream, so the warm-up is on the stream of the capture. ``thread_local``: another thread
    may pin memory meanwhile. The graph's memory lives as long as the function. Raises MachineError.
    """
    try:
        with torch.cuda.device(device):
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                logits = step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        rule = f"cannot be captured as a CUDA graph: {first_line(error)}"
        raise MachineError("step", key="step", value="fixed", rule=rule, remedy="Set step=growing") from error

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
