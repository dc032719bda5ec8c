"""What does the norm in the loss cost, and how exact is it?

In: a model with the gradients of one batch. Out: the time of the closed-form gradient beside that of a whole training
step and of autograd through the norm, and the errors of value and gradient against float64.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contest import clock, contest, print_ratios, ratios, write_report
from torch import Tensor
from torch.nn.utils import get_total_norm

from gpt2_lightning.config import compose_config
from gpt2_lightning.decoder import Decoder
from gpt2_lightning.loss import add_penalty_gradient, cross_entropy, parameter_norm
from gpt2_lightning.optimizer import build_optimizer
from gpt2_lightning.trainer import keep_freed_memory

MODELS = {"124m": ["model=gpt2", "data=shakespeare_bpe"], "10m": ["model=small"], "nano": ["model=nano"]}
BETA = 1e-3
TOKENS = 1024  # of the step
PAIRS = [
    ("penalty", "step"),
    ("autograd_concatenated", "penalty"),
    ("autograd_individual", "penalty"),
    ("parameter_norm", "get_total_norm"),
]


def main() -> None:
    """Time, then compare with float64."""
    args = parse()
    torch.manual_seed(1337)
    config = compose_config([*MODELS[args.model], "optimizer.lr=1e-5"])
    if not torch.cuda.is_available():
        keep_freed_memory()
    decoder = Decoder(config.model)
    contenders = {name: timed(act, args.repeats) for name, act in actions(decoder).items()}
    contenders = {"step": timed(training_step(decoder, build_optimizer(config.optimizer, decoder)), 1), **contenders}
    seconds = contest(contenders, args.rounds)
    found = {"ratios": ratios(seconds, PAIRS), "errors": errors(decoder)}
    print_ratios(found["ratios"])
    for name, error in found["errors"].items():
        print(f"{name:24} error of value {error['value']:.1e}, of gradient {error['gradient']:.1e}")
    write_report(args.json, vars(args), seconds=seconds, **found)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="124m")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count; one more is warm-up")
    parser.add_argument("--repeats", type=int, default=3, help="calls a round of everything but the step")
    parser.add_argument("--threads", type=int, help="of torch; 1 where other work shares the cores")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def timed(act: Callable[[], Any], repeats: int) -> Callable[[], float]:
    """A contender: seconds a call."""

    def play() -> float:
        started = clock()
        for _ in range(repeats):
            act()
        return (clock() - started) / repeats

    return play


def training_step(decoder: Decoder, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Forward, backward and fused AdamW over 1,024 tokens; leaves its gradients for the others to add to."""
    T = decoder.config.block_size
    tokens = torch.randint(decoder.config.vocab_size, (TOKENS // T, T + 1))

    def step() -> None:
        optimizer.zero_grad()
        hidden = decoder.hidden(tokens[:, :-1])
        cross_entropy(hidden, decoder.wte.weight, tokens[:, 1:])[0].backward()
        optimizer.step()

    return step


def actions(decoder: Decoder) -> dict[str, Callable[[], Any]]:
    """Ways to the norm alone, and to the norm with its gradient added to what the parameters hold."""
    parameters = list(decoder.parameters())
    return {
        "penalty": lambda: add_penalty_gradient(parameters, BETA),
        "autograd_concatenated": lambda: (BETA * concatenated_norm(parameters)).backward(),
        "autograd_individual": lambda: (BETA * individual_norm(parameters)).backward(),
        "parameter_norm": lambda: parameter_norm(parameters),
        "get_total_norm": lambda: get_total_norm(parameters),
    }


def concatenated_norm(parameters: list[Tensor]) -> Tensor:
    """The norm of all parameters as one vector."""
    return torch.linalg.vector_norm(torch.cat([p.flatten() for p in parameters]))


def individual_norm(parameters: list[Tensor]) -> Tensor:
    """The norm of the parameters' norms."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in parameters]))


def errors(decoder: Decoder) -> dict[str, dict[str, float]]:
    """Relative errors against float64: of the norm, and, in the 2-norm over all parameters, of its gradient."""
    parameters = list(decoder.parameters())
    return {
        "ours": error_of(parameters, add_penalty_gradient(cleared(parameters), BETA)),
        "get_total_norm": error_of(parameters, scaled_by(parameters, get_total_norm(cleared(parameters)))),
        "autograd_concatenated": error_of(parameters, differentiated(concatenated_norm(cleared(parameters)))),
        "autograd_individual": error_of(parameters, differentiated(individual_norm(cleared(parameters)))),
    }


def cleared(parameters: list[Tensor]) -> list[Tensor]:
    """The same parameters, without gradients."""
    for p in parameters:
        p.grad = None
    return parameters


def scaled_by(parameters: list[Tensor], norm: Tensor) -> Tensor:
    """The closed form with another's norm."""
    for p in parameters:
        p.grad = p.detach() * (BETA / norm.detach())
    return norm


def differentiated(norm: Tensor) -> Tensor:
    """The gradient by autograd."""
    (BETA * norm).backward()
    return norm


@torch.no_grad()
def error_of(parameters: list[Tensor], norm: Tensor) -> dict[str, float]:
    """Of a norm and of the gradients that the parameters hold now."""
    true_norm = sum(p.double().square().sum() for p in parameters).sqrt()
    missed = sum((p.grad.double() - BETA * p.double() / true_norm).square().sum() for p in parameters).sqrt()
    return {"value": float((norm.double() - true_norm).abs() / true_norm), "gradient": float(missed / BETA)}


if __name__ == "__main__":
    main()
