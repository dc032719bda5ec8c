"""Who writes text in the contest of generation: our engine, transformers' generate, CTranslate2; all with the same weights.

In: a contender's name, a decoder of ours. Out: callables that continue token lists by a number of tokens, for each case.
Choice not taken: end-of-text, stop strings, text; every contender makes the same number of tokens.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpt2_lightning.decoder import Decoder
from gpt2_lightning.generation.beam import beam_search
from gpt2_lightning.generation.engine import continue_tokens
from gpt2_lightning.generation.packed import pack
from gpt2_lightning.generation.sampler import prompt_keys
from gpt2_lightning.settings.sampler import SamplerConfig

__all__ = ["TOP_K", "WRITERS"]

Prompts = list[list[int]]
Write = Callable[[Prompts, int, int], Any]  # prompts, new tokens, beams (1: top-k sampling)
TOP_K = 50


def ours(decoder: Decoder, numbers: str, step: str = "auto") -> Write:
    """The engine over packed weights."""
    packed = pack(decoder, numbers)

    def write(prompts: Prompts, n: int, beams: int) -> Any:
        limits = [n] * len(prompts)
        if beams > 1:
            return beam_search(packed, prompts, limits, SamplerConfig(beams=beams), end_of_text=-1)
        return continue_tokens(packed, prompts, limits, SamplerConfig(k=TOP_K), prompt_keys(0, prompts), step=step)

    return write


def transformers(decoder: Decoder, cache: str, dtype: torch.dtype = torch.float32) -> Write:
    """``generate`` of the same weights in transformers, with its dynamic or its static cache."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        decoder.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    model.to(decoder.wte.weight.device, dtype)
    model.generation_config.eos_token_id = None

    def write(prompts: Prompts, n: int, beams: int) -> Any:
        tokens = torch.tensor(prompts, device=model.device)
        how = {"num_beams": beams, "do_sample": False} if beams > 1 else {"do_sample": True, "top_k": TOP_K}
        static = {"cache_implementation": "static"} if cache == "static" else {}
        with torch.inference_mode():
            return model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, pad_token_id=0, **how, **static
            )  # fmt: skip

    return write


def ctranslate2(decoder: Decoder, numbers: str) -> Write:
    """CTranslate2's generator, its weights rounded when they are converted."""
    import ctranslate2 as ct2

    with tempfile.TemporaryDirectory() as folder:
        specification(decoder).save(folder)
        kind = {"float32": "float32", "int8": "int8"}[numbers]
        generator = ct2.Generator(folder, compute_type=kind, intra_threads=torch.get_num_threads())

    def write(prompts: Prompts, n: int, beams: int) -> Any:
        how = {"beam_size": beams} if beams > 1 else {"sampling_topk": TOP_K}
        words = [list(map(str, prompt)) for prompt in prompts]
        length = {"min_length": n, "max_length": n, "include_prompt_in_result": False, "max_batch_size": 0}
        return generator.generate_batch(words, **length, **how)

    return write


def specification(decoder: Decoder) -> Any:
    """The decoder as CTranslate2 describes GPT-2."""
    from ctranslate2.specs import TransformerDecoderModelSpec
    from ctranslate2.specs.common_spec import Activation

    c, w = decoder.config, {name: p.detach().numpy() for name, p in decoder.named_parameters()}
    spec = TransformerDecoderModelSpec.from_config(c.n_layer, c.n_head, pre_norm=True, activation=Activation.GELUTanh)

    def fill(part: Any, name: str, norm: bool = False) -> None:
        setattr(part, "gamma" if norm else "weight", w[f"{name}.weight"])
        if f"{name}.bias" in w:
            setattr(part, "beta" if norm else "bias", w[f"{name}.bias"])

    spec.decoder.scale_embeddings = False
    fill(spec.decoder.embeddings, "wte")
    spec.decoder.position_encodings.encodings = w["wpe.weight"]
    fill(spec.decoder.layer_norm, "ln_f", norm=True)
    fill(spec.decoder.projection, "wte")
    for i, layer in enumerate(spec.decoder.layer):
        fill(layer.self_attention.layer_norm, f"h.{i}.ln_1", norm=True)
        fill(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        fill(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        fill(layer.ffn.layer_norm, f"h.{i}.ln_2", norm=True)
        fill(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        fill(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    spec.register_vocabulary(list(map(str, range(c.vocab_size))))
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = "0", "0", "0"
    spec.validate()
    spec.optimize()
    return spec


WRITERS: dict[str, Callable[[Decoder], Write]] = {
    "ours": partial(ours, numbers="float32"),
    "ours_bfloat16": partial(ours, numbers="bfloat16"),
    "ours_int8": partial(ours, numbers="int8"),
    "ours_growing_bfloat16": partial(ours, numbers="bfloat16", step="growing"),
    "transformers": partial(transformers, cache="dynamic"),
    "transformers_bfloat16": partial(transformers, cache="dynamic", dtype=torch.bfloat16),
    "transformers_static": partial(transformers, cache="static"),
    "ctranslate2": partial(ctranslate2, numbers="float32"),
    "ctranslate2_int8": partial(ctranslate2, numbers="int8"),
}
