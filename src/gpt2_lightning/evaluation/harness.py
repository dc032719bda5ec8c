"""The door to EleutherAI's lm-eval: a decoder of ours as a model of theirs, scored by ``score`` and continued by our engine.

``python -m gpt2_lightning.evaluation.harness --model gpt2_lightning --model_args run=quickstart --tasks ...``
One number: 256, the tokens at most of a generated text where the task does not say.
Choice not taken: their Hugging Face class on an exported folder. It works too, but a byte model has no tokenizer there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.errors import ConfigError, PlatformError
from gpt2_lightning.evaluation.perplexity import measure
from gpt2_lightning.evaluation.protocols import encode_pair
from gpt2_lightning.evaluation.score import score
from gpt2_lightning.generation.text import continue_starts, tokenizer_of
from gpt2_lightning.pretrained import open_decoder
from gpt2_lightning.settings.generate import GenerateConfig
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["HarnessModel"]

MAX_NEW_TOKENS = 256
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the names tasks give it


@register_model("gpt2_lightning")
class HarnessModel(LM):
    """A decoder of ours; ``run`` and ``outputs`` as in ``generate``, or the decoder itself."""

    def __init__(
        self,
        run: str = "",
        outputs: str = "outputs",
        decoder: Decoder | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        found = open_decoder(run, Path(outputs)).decoder if decoder is None else decoder
        self.decoder = found.eval().to(device or "cpu")
        self.tokenizer = tokenizer_of(self.decoder)
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 8

    @property
    def tokenizer_name(self) -> str:
        """What their caches are told apart by."""
        return f"gpt2_lightning-{self.tokenizer.vocab_size}"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding would write it."""
        pairs = [encode_pair(self.tokenizer, *request.args) for request in requests]
        found = score(self.decoder, [context for context, _ in pairs], [tokens for _, tokens in pairs], self.batch_size)
        return [(one.log_p, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, behind end-of-text, in windows that do not overlap."""
        size, end, n_bytes = self.decoder.config.block_size, self.tokenizer.end_of_text, self.tokenizer.token_bytes()
        texts = (self.tokenizer.encode(request.args[0]) for request in requests)
        return [-measure(self.decoder, [text], end, n_bytes, size, self.batch_size).nats for text in texts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation up to the first stop string, greedy unless the task samples."""
        return [self.continued(*request.args) for request in requests]

    def continued(self, context: str, how: dict[str, Any]) -> str:
        """One continuation; of a long context the end is read, so that what is asked for has room."""
        until = how.get("until") or []
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        limit = next((int(how[name]) for name in LENGTHS if how.get(name) is not None), MAX_NEW_TOKENS)
        room = self.decoder.config.block_size - limit
        if room < 1:
            rule = f"must be less than the context, {self.decoder.config.block_size}"
            raise ConfigError("tokens to generate", key="max_gen_toks", value=limit, rule=rule)
        start = self.tokenizer.encode(context)[-room:].tolist() or [self.tokenizer.end_of_text]
        config = GenerateConfig(max_new_tokens=limit, stop=stop)
        (found,) = continue_starts(self.decoder, self.tokenizer, [start], config, sampler_of(how))
        return found[0].text


def sampler_of(how: dict[str, Any]) -> SamplerConfig:
    """Their settings of a draw as ours; greedy unless they say do_sample."""
    if not how.get("do_sample", bool(how.get("temperature"))):
        return SamplerConfig(k=1)
    temperature = float(how.get("temperature") or 1.0)
    return SamplerConfig(temperature=temperature, k=how.get("top_k") or None, p=how.get("top_p") or None)


def main() -> int:
    """lm-eval's own command line with our model known to it; returns an exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except PlatformError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
