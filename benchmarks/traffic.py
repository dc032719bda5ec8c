"""What must cross the links in a training step, and how long that takes beside computing: arithmetic, nothing is measured.

In: a GPU by name, the share of its peak that is reached, tokens of a global step. Out: bytes that each GPU sends a step, by DDP
(a ring all-reduce of the gradients: 2 (n - 1) / n of their size) and fully sharded (gather the weights forward and backward,
scatter the gradients: 3 (n - 1) / n); how long that takes on a link, beside the step's computing; the fewest tokens a GPU and
step behind whose backward pass it hides; how many cores of data a GPU eats.
A ring passes each node once, so the link is what a *node* has, however many GPUs share it. Latency, stragglers and other
traffic are left out: real times are longer.
"""

import argparse
from dataclasses import replace
from typing import Any

from gpt2_lightning.config import option_settings
from gpt2_lightning.metrics import PEAK_FLOPS, flops_per_token
from gpt2_lightning.settings.decoder import DecoderConfig

MODELS = {"124M": "gpt2", "355M": "gpt2_medium", "774M": "gpt2_large", "1.5B": "gpt2_xl"}
LINKS = {"NVLink, 450 GB/s": 450e9, "400 Gb/s": 50e9, "100 Gb/s": 12.5e9}  # each way
GPUS = (8, 64, 512)
WIDTH = {"fp32": 4, "bf16": 2}
RINGS = {"DDP": 2, "sharded": 3}
BACKWARD = 2 / 3  # of a step's operations


def parameters(c: DecoderConfig) -> int:
    """Of GPT-2 with a tied head and biases (Radford et al. 2019)."""
    block = 12 * c.n_embd**2 + 13 * c.n_embd
    return (c.vocab_size + c.block_size) * c.n_embd + c.n_layer * block + 2 * c.n_embd


def sent(n_parameters: int, width: int, ring: int, gpus: int) -> float:
    """Bytes that each rank sends a step."""
    return ring * (gpus - 1) / gpus * n_parameters * width


def table(head: list[str], rows: list[list[Any]]) -> None:
    """Print it as Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", choices=PEAK_FLOPS, default="H100")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument("--tokens", type=int, default=524288, help="of a global step")
    parser.add_argument("--stream", type=float, nargs="*", default=[], help="tokens a core's second of data, as measured")
    a = parser.parse_args()
    sizes = {name: replace(DecoderConfig(), **option_settings("model", file)) for name, file in MODELS.items()}
    counts = {name: parameters(c) for name, c in sizes.items()}
    speeds = {name: a.mfu * PEAK_FLOPS[a.gpu] / flops_per_token(c, counts[name]) for name, c in sizes.items()}

    print(f"arithmetic: {a.gpu} at {a.mfu:.0%} of {PEAK_FLOPS[a.gpu] / 1e12:.0f} TFLOP/s, {a.tokens} tokens a step\n")
    print("GB that each GPU sends a step, DDP / sharded\n")
    table(["model", "parameters", *(f"{w}, {n} GPUs" for w in WIDTH for n in GPUS)],
          [[name, f"{p:,}", *(" / ".join(f"{sent(p, WIDTH[w], r, n) / 1e9:.2f}" for r in RINGS.values())
                              for w in WIDTH for n in GPUS)] for name, p in counts.items()])  # fmt: skip
    print("milliseconds a step: computing, and DDP's fp32 gradients on each link\n")
    table(["model", "GPUs", "tokens a GPU", "computing", *LINKS],
          [[name, n, a.tokens // n, f"{1e3 * a.tokens / n / speeds[name]:.1f}",
            *(f"{1e3 * sent(p, 4, 2, n) / rate:.1f}" for rate in LINKS.values())]
           for name, p in counts.items() for n in GPUS])  # fmt: skip
    print("fewest tokens a GPU and step whose backward pass hides the traffic, 64 GPUs: DDP fp32 / DDP bf16 / sharded bf16\n")
    kinds = ((4, 2), (2, 2), (2, 3))
    table(["model", *LINKS],
          [[name, *(" / ".join(f"{sent(p, w, r, 64) / rate * speeds[name] / BACKWARD:,.0f}" for w, r in kinds)
                    for rate in LINKS.values())] for name, p in counts.items()])  # fmt: skip
    print("GB with AdamW in fp32: a checkpoint (12 bytes a parameter), a rank's state in training (16); seconds at 1 GB/s\n")
    rows = [[name, f"{12 * p / 1e9:.1f}", f"{16 * p / 1e9:.1f}", f"{12 * p / 1e9:.0f}"] for name, p in counts.items()]
    table(["model", "a checkpoint", "state", "seconds to write a checkpoint"], rows)
    print("tokens a second that a GPU eats, and cores of data for it\n")
    rows = [[name, f"{speed:,.0f}", *(f"{speed / rate:.2f}" for rate in a.stream)] for name, speed in speeds.items()]
    table(["model", "tokens a second", *(f"cores at {rate:,.0f}" for rate in a.stream)], rows)


if __name__ == "__main__":
    main()
