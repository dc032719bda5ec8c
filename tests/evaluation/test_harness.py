"""lm-eval's own tasks and arithmetic on a local sample: its figures for our checkpoint, and its own model's, equal ours."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_lightning.decoder import Decoder, DecoderConfig
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.evaluation.command import judge_records, judge_texts, read_texts
from gpt2_lightning.evaluation.protocols import HELLASWAG, LAMBADA
from gpt2_lightning.export import export
from gpt2_lightning.generation.text import tokenizer_of
from gpt2_lightning.pretrained import open_decoder
from gpt2_lightning.settings.evaluate import EvaluateConfig
from gpt2_lightning.settings.export import ExportConfig
from tests.evaluation.sample import documents, passages, questions, write

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'gpt2-lightning[lm-eval]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary, weights far enough from 0 that figures differ, exported with its tokenizer."""
    root = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    Decoder(DecoderConfig(n_layer=2, n_head=2, n_embd=16, block_size=64, init_std=0.3)).save_pretrained(root / "weights")
    export(ExportConfig(run=str(root / "weights"), to=str(root / "ours")))
    write(root / "documents.jsonl", [{"page": text, "text": text} for text in documents()])
    write(root / "lambada.jsonl", passages())
    write(root / "hellaswag.jsonl", questions())
    return root


def task(folder: Path, name: str) -> dict[str, Any]:
    """lm-eval's task as it stands, reading the local file."""
    import yaml

    home = Path(lm_eval.__file__).parent / "tasks"
    path = {"lambada": "lambada/lambada_openai.yaml", "hellaswag": "hellaswag/hellaswag.yaml"}[name]
    text = "\n".join(line for line in (home / path).read_text().splitlines() if "!function" not in line)
    config = yaml.safe_load(text) | {"dataset_path": "json", "dataset_name": None, "tag": None}
    config |= {"dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}, "test_split": "test"}
    for key in ("training_split", "validation_split"):
        config.pop(key, None)
    if name == "hellaswag":
        from lm_eval.tasks.hellaswag.utils import process_docs

        config["process_docs"] = process_docs
        config["metric_list"].append({"metric": "acc_bytes", "aggregation": "mean", "higher_is_better": True})
    return config


def rolling(folder: Path) -> dict[str, Any]:
    """Perplexity of whole documents, as its wikitext task has it, without that corpus's own spelling."""
    metrics = [{"metric": name} for name in ("byte_perplexity", "bits_per_byte")]
    return {
        "task": "documents",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": metrics,
    }


def theirs(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, float]]:
    """What lm-eval reports."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    tasks = [task(folder, "lambada"), task(folder, "hellaswag"), rolling(folder)]
    found = lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, log_samples=False)
    return {name: {k.removesuffix(",none"): v for k, v in of.items()} for name, of in found["results"].items()}


def ours(folder: Path) -> dict[str, dict[str, float]]:
    opened = open_decoder(str(folder / "weights"), folder)
    tokenizer = tokenizer_of(opened.decoder)
    found = {}
    for name, protocol in (("lambada", LAMBADA), ("hellaswag", HELLASWAG)):
        config = EvaluateConfig(run="x", protocol=name, path=str(folder / f"{name}.jsonl"))
        found[name] = judge_records(opened, tokenizer, protocol, config)
    config = EvaluateConfig(run="x", path=str(folder / "documents.jsonl"), documents="apart")
    return found | judge_texts(opened, tokenizer, read_texts(config, opened, tokenizer), config)


def assert_equal(found: dict[str, dict[str, float]], own: dict[str, dict[str, float]]) -> None:
    assert found["lambada_openai"]["perplexity"] == pytest.approx(own["lambada"]["perplexity"], rel=1e-5)
    assert found["lambada_openai"]["acc"] == own["lambada"]["accuracy"]
    for key, name in (("acc", "accuracy"), ("acc_norm", "accuracy_norm"), ("acc_bytes", "accuracy_bytes")):
        assert found["hellaswag"][key] == own["hellaswag"][name]
    assert found["documents"]["bits_per_byte"] == pytest.approx(own["documents"]["bits_per_byte"], rel=1e-5)
    text = own["documents"]
    assert found["documents"]["byte_perplexity"] == pytest.approx(
        math.exp(text["cross_entropy"] * text["tokens"] / text["bytes"])
    )


def test_lm_evals_figures_of_our_checkpoint_equal_ours(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gpt2_lightning.evaluation.harness import HarnessModel

    own = ours(folder)
    assert len({own["hellaswag"][f"accuracy{end}"] for end in ("", "_norm")}) > 1  # or the sample would tell nothing
    assert_equal(theirs(HarnessModel(run=str(folder / "weights")), folder, monkeypatch, tmp_path), own)


def test_lm_evals_own_model_on_our_export_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval's own model needs accelerate")
    model = huggingface.HFLM(pretrained=str(folder / "ours"), device="cpu", dtype="float32", batch_size=4)
    assert_equal(theirs(model, folder, monkeypatch, tmp_path), ours(folder))


class Asked:
    """A request as lm-eval hands it on."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_texts_are_continued_as_lm_evals_own_model_continues_them(folder: Path) -> None:
    from gpt2_lightning.evaluation.harness import HarnessModel

    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval's own model needs accelerate")
    model = HarnessModel(run=str(folder / "weights"))
    contexts = ["The ship", documents()[1], documents()[3]]
    asked = [Asked(text, {"until": ["\n\n", "Q:"], "max_gen_toks": 12}) for text in contexts]
    found = model.generate_until(asked)
    own = huggingface.HFLM(pretrained=str(folder / "ours"), device="cpu", dtype="float32", batch_size=1)
    assert found == own.generate_until(asked, disable_tqdm=True)
    stop = found[0][4:7]
    assert model.generate_until([Asked(contexts[0], {"until": stop, "max_gen_toks": 12})]) == [found[0].split(stop)[0]]
    with pytest.raises(ConfigError, match="must be less than the context, 64"):
        model.generate_until([Asked("x", {"max_gen_toks": 64})])


def test_it_is_known_by_its_name(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    from gpt2_lightning.evaluation.harness import HarnessModel

    assert get_model("gpt2_lightning") is HarnessModel
    made = HarnessModel.create_from_arg_string(f"run={folder / 'weights'}", {"batch_size": 2, "device": "cpu"})
    assert made.batch_size == 2
    empty = made.loglikelihood([Asked("", "To be")])[0][0]
    assert empty == pytest.approx(made.loglikelihood_rolling([Asked("To be")])[0])
