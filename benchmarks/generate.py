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
MODELS = {"gpt2": DecoderConfig(), "tiny": DecoderConfig(n_layer=2, n_head=2, n_embd=64, block_size=256)}
NUMBERS_OF = {"ours": "float32", "ours_bfloat16": "bfloat16", "ours_int8": "int8"}
WEIGHT_BYTES = {"ours": 4, "ours_bfloat16": 2, "ours_int8": 1}


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
    there = [name for name in WRITERS if "ctranslate2" not in name or find_spec("ctranslate2")]
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--contenders", nargs="*", choices=WRITERS, default=there)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more is warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--serve", choices=WRITERS, help="be the process of this contender")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


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
    options = ["--model", args.model, "--prompt", str(args.prompt), "--new", str(args.new), "--device", args.device]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
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
        pairs = [(other, us) for us in args.contenders if us.startswith("ours") for other in [*others, "ours"] if other != us]
        found[case] = {"ratios": ratios(seconds, pairs), "seconds": seconds}
        print(f"{case}: seconds of the first over those of the second")
        print_ratios(found[case]["ratios"])
    for child in children.values():
        child.kill()
    bound = share_of_bound(args, found["batch_1"]["seconds"]) if "batch_1" in found else {}
    for name, share in bound.items():
        print(f"{name}: {share:.2f} of the tokens a second that reading its weights once each would allow")
    errors = {name: logits_error(args, numbers) for name, numbers in NUMBERS_OF.items() if name in args.contenders}
    write_report(args.json, vars(args), cases=found, bound=bound, errors=errors)


@torch.inference_mode()
def logits_error(args: argparse.Namespace, numbers: str) -> dict[str, float]:
    """How far the packed decoder's logits are from the plain one's, and how often its likeliest token is the same."""
    torch.manual_seed(0)
    decoder = Decoder(MODELS[args.model]).eval()
    tokens = torch.randint(decoder.config.vocab_size, (4, 32))
    exact, near = decoder(tokens), pack(decoder, numbers)(tokens)
    same = (exact.argmax(-1) == near.argmax(-1)).float().mean()
    found = {"largest": float((near - exact).abs().max()), "std": float((near - exact).std()), "same": float(same)}
    print(f"{numbers}: logits differ by {found['largest']:.1e} at most, std {found['std']:.1e}, of logits with std "
          f"{float(exact.std()):.2f}; the likeliest token is the same at {same:.3f} of {tokens.numel()} places")  # fmt: skip
    return found


def share_of_bound(args: argparse.Namespace, seconds: Seconds) -> dict[str, float]:
    """Tokens a second at batch 1 over memory bandwidth / bytes of the weights that a token's products read."""
    config = MODELS[args.model]
    weights = sum(p.numel() for p in Decoder(config).parameters()) - config.block_size * config.n_embd
    rate = bandwidth(args.device)
    there = {name: size for name, size in WEIGHT_BYTES.items() if name in seconds}
    return {name: args.new / min(seconds[name]) / (rate / (weights * size)) for name, size in there.items()}


def bandwidth(device: str) -> float:
    """The most bytes a second that were read from memory in ten tries: the sum of an array far larger than any cache."""
    array = torch.ones(2**28, device=device)  # 1 GiB
    best = float("inf")
    for _ in range(10):
        started = clock()
        array.sum()
        best = min(best, clock() - started)
    return array.numel() * 4 / best


if __name__ == "__main__":
    main()
