"""Variants of a run: the short way to each gives what composing all of it gives, refusals too, whatever was asked before."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gpt2_lightning.config import RunConfig, compose_config, group_options, to_yaml
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.variants import Variants

QUICK = ("+experiment=quickstart",)
LOCAL = (*QUICK, "data=local", "data.path=a.txt")
WOVEN = (*QUICK, "loss.beta=${model.dropout}")
PLACE = {"run.study": "lr", "run.name": "lr", "run.id": "trial-007", "resume": "auto", "trainer.devices": "1",
         "trainer.threads": "2"}  # fmt: skip
SHORT: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (QUICK, {}),
    (QUICK, {"optimizer.lr": 0.003, "loss.beta": 0.01, **PLACE}),
    (QUICK, {"optimizer.lr": 1, "loss.beta": 0, "model.dropout": "0.1", "seed": "12"}),
    (QUICK, {"optimizer.lr": 1e-07, "optimizer.weight_decay": 3.0, "schedule.warmup_steps": 3}),
    (QUICK, {"model.n_layer": 2, "model.n_head": 4, "model.n_embd": 64, "model.norm": "post"}),
    (QUICK, {"optimizer": "sgd", "optimizer.lr": 0.5, **PLACE}),
    (QUICK, {"model": "nano", "schedule.warmup_steps": 5}),
    (QUICK, {"sampler.k": None, "sampler.temperature": "1", "resume": "must", "init": None}),
    (QUICK, {"init": "no", "run.name": "1e3", "run.id": "0x10"}),
    (LOCAL, {"optimizer.lr": 0.1, **PLACE}),
    (WOVEN, {"optimizer.lr": 0.1, **PLACE}),
]
LONG: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (LOCAL, {"data.path": "b.txt"}),
    (LOCAL, {"data.split": "line", **PLACE}),
    (WOVEN, {"model.dropout": 0.3}),
    (WOVEN, {"model": "nano"}),
    (QUICK, {"optimizer.betas": [0.5, 0.6]}),
    (QUICK, {"run.id": "${seed}"}),
    ((*QUICK, "+sweeps=mixture"), {"data.corpora.misspelt.weight": 0.5}),
]
BAD: list[dict[str, Any]] = [
    {"optimizer.lr": -1.0}, {"optimizer.lr": "fast"}, {"optimizer.lr": None}, {"optimizer.lr": "???"}, {"optimizer.lr": [1]},
    {"optimizer.lrr": 1.0}, {"optimizer.check_rules": 1}, {"optimizer": "sgdd"}, {"optimizer": "sgd", "optimizer.betas": 1},
    {"optimizer.lr": -1, "loss.beta": -1}, {"optimizer.lr": "fast", "loss.beta": "slow"}, {"seed": 1.5}, {"seed.a": 1},
    {"model.n_head": 5}, {"model.vocab_size": 5}, {"model.n_layer": True}, {"model.dropout": float("nan")}, {"model": "huge"},
    {"run.name": "../x"}, {"trainer": "gpus"}, {"nothing": 1},
    {"sampler.k": 300, "optimizer.lr": 0.1}, {"data.path": 5, "seed": -1}
]  # fmt: skip


class Long(Variants):
    """Composes all of every run."""

    def nearby(self, *asked: Any) -> None:
        return None


def answer(variants: Variants, values: dict[str, Any]) -> RunConfig | str:
    try:
        return variants.at(values)
    except ConfigError as error:
        return str(error)


def whole_text(config: RunConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


@pytest.mark.parametrize("words", dict.fromkeys(words for words, _ in SHORT + LONG), ids=" ".join)
def test_the_short_way_gives_what_the_long_way_gives(words: tuple[str, ...]) -> None:
    short, long = Variants(list(words)), Long(list(words))
    points = [point for given, point in SHORT + LONG if given == words] + BAD
    expected = [answer(long, point) for point in points]
    for point, found in [*zip(points, expected, strict=True), *reversed([*zip(points, expected, strict=True)])]:
        assert answer(short, point) == found, point
        if isinstance(found, RunConfig):
            assert to_yaml(short.at(point)) == whole_text(found), point
    assert [isinstance(found, str) for found in expected] == [point in BAD for point in points], "only bad ones are refused"


@pytest.mark.parametrize(("words", "point"), SHORT)
def test_single_values_go_the_short_way(words: tuple[str, ...], point: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2_lightning.variants.whole", None)
    assert isinstance(Variants(list(words)).at(point), RunConfig)


def test_what_an_interpolation_names_may_be_interpolated_itself(here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    text = "# @package _global_\nresume: model.dropout\nloss: {beta: '${oc.select:${resume}}'}\n"
    (here / "conf/experiment/nested.yaml").write_text(text)
    assert Variants(["+experiment=nested"]).at({"model.dropout": 0.3}).loss.beta == 0.3


@pytest.mark.parametrize("name", sorted(group_options("experiment")))
def test_settings_are_written_as_if_at_once(name: str) -> None:
    config = compose_config([f"+experiment={name}"])
    config.run.name = "ünïcode: a #b 'c' 😀 " + "long words " * 20
    config.resume = "on"
    config.optimizer.lr = float("inf")
    for _ in range(2):
        assert to_yaml(config) == whole_text(config)
