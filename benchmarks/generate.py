"""How many tokens a second do we write, beside transformers' generate and CTranslate2?

In: contenders, cases (a batch of 1 or 8 by top-k sampling, or 5 beams), a model with random weights. Out: ratios of tokens per
second, and at batch 1 the share of what the memory's bandwidth would let through.
Each contender has a process of its own, all in turns: importing one changes the threads of another. CTranslate2 is an extra
(``pip install ctranslate2``) and left out where it is not there.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from contest import Seconds, clock, contest, print_ratios, ratios, write_report
from writers import WRITERS

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.generation.packed import pack

CASES = {"batch_1": (1, 1), "batch_8": (8, 1), "beam_5": (1, 5)}  # prompts, beams
PRECISIONS = {"fp32": 4, "bf16": 2, "int8": 1}  # bytes of a weight
MODELS = {"gpt2": DecoderConfig(), "tiny": DecoderConfig(n_layer=2, n_head=2, n_embd=64, block_size=256)}
NUMBERS_OF = {"ours": "float32", "ours_bfloat16": "bfloat16", "ours_int8": "int8"}
SUMS = {"cpu": 1, "cuda": 20}  # in a row: a GPU's is so short that a launch would show


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    if args.serve:
        serve(args)
    else:
        compete(args)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, help="only contenders of this one")
    parser.add_argument("--contenders", nargs="*", choices=WRITERS, help="default: all that the device can run")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more is warm-up")
    parser.add_argument("--serve", choices=WRITERS, help="be the process of this contender")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error(f"--accelerator gpu: torch {torch.__version__} sees no GPU")
    args.device = "cuda" if args.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    asked = args.contenders or [name for name in WRITERS if runs(name, args.device)]
    args.contenders = [name for name in asked if args.precision in (None, precision(name))]
    return args


def precision(name: str) -> str:
    """That of a contender's weights, by the end of its name."""
    return {"int8": "int8", "bfloat16": "bf16"}.get(name.rpartition("_")[2], "fp32")


def runs(name: str, device: str) -> bool:
    """Whether a contender can run there, and is another one there."""
    if device == "cuda":
        return precision(name) != "int8" and "ctranslate2" not in name
    return "growing" not in name and ("ctranslate2" not in name or find_spec("ctranslate2") is not None)


def serve(args: argparse.Namespace) -> None:
    """Write one round of the case named on each line of standard input, and print the seconds."""
    torch.manual_seed(0)
    decoder = Decoder(MODELS[args.model]).eval().to(args.device)
    write = WRITERS[args.serve](decoder)
    for line in sys.stdin:
        rows, beams = CASES[line.strip()]
        prompts = torch.randint(decoder.config.vocab_size - 1, (rows, args.prompt)).tolist()
        started = clock()
        write(prompts, args.new, beams)
        print(json.dumps(clock() - started), flush=True)


def compete(args: argparse.Namespace) -> None:
    """The contest between processes and its report."""
    options = ["--model", args.model, "--prompt", str(args.prompt), "--new", str(args.new), "--accelerator", args.accelerator]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = {
        name: subprocess.Popen([sys.executable, __file__, *options, "--serve", name], **pipes) for name in args.contenders
    }

    def turn(name: str, case: str) -> float:
        children[name].stdin.write(f"{case}\n")
        children[name].stdin.flush()
        return float(json.loads(children[name].stdout.readline()))

    found = {}
    for case in args.cases:
        seconds = contest({name: partial(turn, name, case) for name in args.contenders}, args.rounds)
        others = [name for name in args.contenders if not name.startswith("ours")]
        others += ["ours", "ours_growing_bfloat16"]
        pairs = [(other, us) for us in args.contenders if us.startswith("ours") for other in others if other != us]
        found[case] = {"ratios": ratios(seconds, pairs), "seconds": seconds}
        print(f"{case}: seconds of the first over those of the second")
        print_ratios(found[case]["ratios"])
    for child in children.values():
        child.kill()
    bound = share_of_bound(args, found["batch_1"]["seconds"]) if "batch_1" in found else {}
    for name, (rate, share) in bound.items():
        print(f"{name}: {rate:,.0f} tokens a second, {share:.2f} of what reading its weights once each would allow")
    errors = {name: logits_error(args, numbers) for name, numbers in NUMBERS_OF.items() if name in args.contenders}
    write_report(args.json, vars(args), cases=found, bound=bound, errors=errors)


@torch.inference_mode()
def logits_error(args: argparse.Namespace, numbers: str) -> dict[str, float]:
    """How far the packed decoder's logits are from the plain one's, and how often its likeliest token is the same."""
    torch.manual_seed(0)
    decoder = Decoder(MODELS[args.model]).eval().to(args.device)
    tokens = torch.randint(decoder.config.vocab_size, (4, 32), device=args.device)
    exact, near = decoder(tokens), pack(decoder, numbers)(tokens)
    same = (exact.argmax(-1) == near.argmax(-1)).float().mean()
    found = {"largest": float((near - exact).abs().max()), "std": float((near - exact).std()), "same": float(same)}
    print(f"{numbers}: logits differ by {found['largest']:.1e} at most, std {found['std']:.1e}, of logits with std "
          f"{float(exact.std()):.2f}; the likeliest token is the same at {same:.3f} of {tokens.numel()} places")  # fmt: skip
    return found


def share_of_bound(args: argparse.Namespace, seconds: Seconds) -> dict[str, tuple[float, float]]:
    """Tokens a second at batch 1, and that over memory bandwidth / bytes of the weights that a token's products read."""
    config = MODELS[args.model]
    weights = sum(p.numel() for p in Decoder(config).parameters()) - config.block_size * config.n_embd
    most = bandwidth(args.device) / weights
    rates = {name: args.new / min(times) for name, times in seconds.items()}
    return {name: (rate, rate / most * PRECISIONS[precision(name)]) for name, rate in rates.items()}


def bandwidth(device: str) -> float:
    """The most bytes a second that were read from memory in ten tries: the sum of an array far larger than any cache."""
    array = torch.ones(2**28, device=device)  # 1 GiB
    best = float("inf")
    for _ in range(10):
        started = clock()
        for _ in range(SUMS[device]):
            array.sum()
        best = min(best, (clock() - started) / SUMS[device])
    return array.numel() * 4 / best


if __name__ == "__main__":
    main()
