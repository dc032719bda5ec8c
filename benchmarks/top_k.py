"""How does what a run's model writes change with top-k? The curve behind a choice of ``sampler.k``.

In: a run, the values of k. Out: for each k the measures of continuations of held-out text, the entropy of the next-token
distribution before and after the sampler, and in the last line what people wrote behind the same prompts.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from contest import write_report

from gpt2_lightning.config import load_config
from gpt2_lightning.generation.measures import choose_rows, measure_generation
from gpt2_lightning.run import open_data
from gpt2_lightning.settings.sampler import SamplerConfig
from gpt2_lightning.trained import find_run, load_decoder

KS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128]
COLUMNS = ["perplexity", "perplexity_gap", "repetition", "distinct_3", "self_bleu", "zipf", "sampled_entropy", "entropy"]


def main() -> None:
    """Measure every k and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's name, folder or checkpoint")
    parser.add_argument("--k", nargs="*", type=int, default=KS)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=128, help="new tokens of each text")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkpoint = find_run(args.run, args.outputs)
    decoder, _ = load_decoder(checkpoint)
    data = open_data(load_config(str(checkpoint.parents[1] / "config.yaml"), []))
    rows = choose_rows([inputs for inputs, _ in data.validation], args.prompts, args.seed)
    ks = [k for k in args.k if k < decoder.config.vocab_size]
    samplers = {str(k): SamplerConfig(k=k, temperature=args.temperature) for k in ks}
    samplers["all"] = replace(SamplerConfig(temperature=args.temperature), k=None)
    found = {}
    print("k".rjust(6), *(name.rjust(15) for name in COLUMNS))
    for name, sampler in samplers.items():
        found[name] = measure_generation(decoder, rows, sampler, args.new, args.seed, batch_size=32)
        print_line(name, found[name], "generation/")
    print_line("human", next(iter(found.values())), "generation/human/")
    write_report(args.json, vars(args), measures=found)


def print_line(name: str, measures: dict[str, float], prefix: str) -> None:
    """One line of the table; a measure that is not there is a dash."""
    values = (measures.get(prefix + column) for column in COLUMNS)
    print(name.rjust(6), *("-".rjust(15) if value is None else f"{value:15.4f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
