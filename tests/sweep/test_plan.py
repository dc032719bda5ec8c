"""The plan: what a study's words ask for, and that what cannot be right is refused before there is any folder."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2_lightning.__main__ import main
from gpt2_lightning.config import compose_config, config_folder, group_options
from gpt2_lightning.errors import ConfigError
from gpt2_lightning.sweep.plan import Plan, fingerprint, multirun_words, read_plan
from tests.conftest import Command

QUICK = "+experiment=quickstart"
STUDIES = Path(__file__).parents[2] / "sweeps"


@pytest.fixture(autouse=True)
def no_study_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What should be refused, and is not, fails here."""
    monkeypatch.setattr("gpt2_lightning.sweep.command.make_slots", None)


def plan_of(*words: str) -> Plan:
    return read_plan([QUICK, *words])


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(*words)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(group_options("sweeps")))
def test_every_study_composes_with_its_experiment_and_says_what_it_asks_and_takes(name: str) -> None:
    lines = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert "?" in lines[1]
    experiment = lines[2].split("+experiment=")[1].split()[0]
    assert lines[2].startswith(f"# python -m gpt2_lightning +experiment={experiment} +sweeps={name}")
    assert any(word in lines[1] + lines[2] for word in ("minutes", "hour", "seconds"))
    plan = read_plan([f"+experiment={experiment}", f"+sweeps={name}"])
    assert plan.sweep.name == name and 1 <= plan.n_trials <= 16
    assert not plan.outside(0), "the baseline lies in the space"
    if experiment == "quickstart" and len(plan.space):
        assert (plan.base.trainer.max_steps, plan.base.trainer.val_every) == (188, 47)


def test_the_shapes_of_the_architecture_study_have_as_many_parameters() -> None:
    def of_blocks(name: str) -> int:
        c = compose_config([f"model={name}"]).model
        return c.n_layer * (12 * c.n_embd**2 + 13 * c.n_embd)

    micro = of_blocks("micro")
    assert all(abs(of_blocks(name) / micro - 1) < 0.02 for name in ("micro_deep", "micro_wide"))


def test_a_mixture_study_is_judged_by_the_clean_corpus() -> None:
    plan = plan_of("+sweeps=mixture")
    corpora = plan.variants.at({"data.corpora.misspelt.weight": 0.5}).data.corpora
    assert corpora["misspelt"].weight == 0.5 and corpora["misspelt"].augment.active
    assert not corpora["shakespeare"].augment.active
    assert corpora["shakespeare"].path == corpora["misspelt"].path, "what one holds out, the other does too"
    assert plan.sweep.objectives == ["val/shakespeare/cross_entropy"]


def test_files_of_hydra_optuna_sweeper_s_users_are_read(here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    theirs = {"n_trials": 7, "direction": "maximize", "n_jobs": 2, "params": {"optimizer.lr": "interval(0.001, 0.1)"}}
    text = yaml.safe_dump({"hydra": {"sweeper": theirs}, "sweep": {"objective": "val/accuracy"}})
    (here / "conf/experiment/theirs.yaml").write_text(f"# @package _global_\n{text}")
    plan = read_plan(["+experiment=theirs", "hydra.sweeper.params.loss.beta=choice(0, 0.1)", "hydra.sweeper.n_trials=8"])
    assert plan.space.as_asked() == {"optimizer.lr": "interval(0.001, 0.1)", "loss.beta": "choice(0, 0.1)"}
    assert (plan.n_trials, plan.sweep.directions, plan.sweep.slots, plan.sweep.name) == (8, ["maximize"], 2, "theirs")


@pytest.mark.parametrize(
    ("words", "space"),
    [
        ([], {"loss.beta": "interval(0.0, 0.05)", "optimizer.lr": "tag(log, interval(0.001, 0.02))"}),
        (["optimizer.lr=1e-3,2e-3"], {"loss.beta": "interval(0.0, 0.05)", "optimizer.lr": "choice(0.001, 0.002)"}),
        (
            ["sweep.params.loss.beta=choice(0, 1)"],
            {"loss.beta": "choice(0, 1)", "optimizer.lr": "tag(log, interval(0.001, 0.02))"},
        ),
        (["optimizer.lr=1e-3"], {"loss.beta": "interval(0.0, 0.05)"}),
        (["optimizer.lr=1e-3", "loss.beta=0", "seed=1,2"], {"seed": "choice(1, 2)"}),
    ],
)
def test_typed_values_replace_the_file_s_and_fixed_ones_leave_the_space(words: list[str], space: dict[str, str]) -> None:
    assert plan_of("+sweeps=lr_beta", *words).space.as_asked() == space


def test_a_fixed_value_settles_the_conditions_on_it() -> None:
    plan = plan_of("+sweeps=optimizers", "optimizer=sgd")
    assert plan.space.as_asked() == {"optimizer.lr": "tag(log, interval(0.005, 0.5))"}
    assert plan.base.optimizer.name == "sgd"
    assert "is empty" in refused("+sweeps=optimizers", "optimizer=muon")
    assert "is empty" in refused("+sweeps=optimizers", "optimizer=sgd", "optimizer.lr=1")


def test_the_baseline_is_the_first_place_inside_of_the_space_and_outside() -> None:
    inside = plan_of("+sweeps=lr")
    assert inside.points == [{"optimizer.lr": 0.004}] and inside.fixed(0) == {"optimizer.lr": 0.004}
    assert inside.is_baseline(0) and not inside.outside(0) and not inside.is_baseline(1) and inside.fixed(1) is None
    outside = plan_of("+sweeps=lr", "optimizer.lr=interval(1e-2, 1e-1)")
    assert outside.outside(0) and outside.fixed(0) is None
    without = plan_of("+sweeps=lr", "sweep.baseline=false")
    assert without.points == [] and not without.is_baseline(0)


def test_a_conditional_baseline_holds_what_its_own_options_ask() -> None:
    plan = plan_of("+sweeps=optimizers")
    assert plan.fixed(0) == {"optimizer": "adam", "optimizer.lr (optimizer=adam)": 0.002}
    assert plan.variants.at({"optimizer": "sgd", "optimizer.lr": 0.5}).optimizer.name == "sgd"


def test_enqueued_points_come_after_the_baseline_and_may_leave_keys_open() -> None:
    plan = plan_of("+sweeps=lr_beta", "sweep.enqueue=[{loss.beta: 0.01},{loss.beta: 0, optimizer.lr: 0.004}]")
    assert plan.points == [{"loss.beta": 0.0, "optimizer.lr": 0.004}, {"loss.beta": 0.01}]
    assert [plan.fixed(place) for place in (1, 2)] == [{"loss.beta": 0.01}, None]
    joint = ["sampler.k=choice(1, null)", "sweep.joint=true", "sweep.objective=generation/perplexity_gap"]
    plan = plan_of(*joint, "sweep.enqueue=[{sampler.k: null}]")
    assert plan.fixed(1) == {"sampler.k": None}
    assert plan.variants.at({"sampler.k": None}).sampler.k is None


def test_a_grid_has_all_points_and_the_baseline_once() -> None:
    plan = plan_of("optimizer.lr=1e-3,4e-3", "seed=range(1,3)", "seed=1,2", "sweep.sampler=grid", "sweep.baseline=false")
    assert plan.n_trials == 4
    assert plan.points[0] == {"optimizer.lr": 0.001, "seed": 1} and plan.points[1] == {"optimizer.lr": 0.001, "seed": 2}
    plan = plan_of("optimizer.lr=1e-3,4e-3", "sweep.sampler=grid")
    assert plan.points == [{"optimizer.lr": 0.004}, {"optimizer.lr": 0.001}]


def test_decode_time_settings_are_scored_and_joint_ones_proposed() -> None:
    plan = plan_of("+sweeps=beta_lr_topk")
    assert [p.key for p in plan.decode.parameters] == ["sampler.k"] and len(plan.space) == 2
    assert [point["sampler.k"] for point in plan.candidates({})] == [1, 2, 4, 8, 16, 32, None]
    joint = plan_of("+sweeps=beta_lr_topk", "sweep.joint=true", "sweep.objective=[val/cross_entropy,generation/perplexity_gap]")
    assert len(joint.space) == 3 and not len(joint.decode)
    assert joint.candidates({"loss.beta": 0.0, "sampler.k": None}) == [{"sampler.k": None}]
    only = plan_of("+sweeps=topk_only")
    assert (only.n_trials, only.points, len(only.space)) == (1, [{}], 0)


REFUSED = [
    (["+sweeps=bet"], "There are beta_lr_topk"),
    (["+sweeps=lr", "optimizer.lrr=interval(0,1)"], "optimizer.lrr = 0.0): no setting has this name. Did you mean"),
    (["+sweeps=lr", "optimizer=sgd,adamv"], "optimizer = adamv): no such optimizer. There are adam"),
    (["+sweeps=lr", "model.n_head=4,5"], "model.n_head = 5): must divide the width model.n_embd = 256"),
    (["+sweeps=lr", "model.n_embd=256,250"], "250 is refused: attention heads a block (model.n_head = 4)"),
    (["+sweeps=lr", "loss.beta=interval(-1, 1)"], "loss.beta = -1.0): must be at least 0"),
    (["+sweeps=lr", "trainer.max_steps=interval(1, 9)"], "Integer"),
    (["+sweeps=lr", "optimizer.lr=interval(1, 0)"], "low end above its high one"),
    (["+sweeps=lr", "optimizer.lr=tag(log, interval(0, 1))"], "must begin above 0"),
    (["+sweeps=lr", "optimizer.lr=interval(nan, 1)"], "finite ends"),
    (["+sweeps=lr", "optimizer.lr=interval(1,"], "no viable alternative"),
    (["+sweeps=lr", "run.name=a,b"], "is the engine's own to set"),
    (["+sweeps=lr", "sweep.n_trials=1,2"], "is the engine's own to set"),
    (["+sweeps=lr", "trainer.devices=1,2"], "is the engine's own to set"),
    (["+sweeps=lr", "optimizer.lr=1e-3"], "is empty. Add +sweeps=NAME"),
    (["sweep.n_trials=3"], "is empty. Add +sweeps=NAME"),
    (["+sweeps=lr_beta", "sweep.objective=train/loss"], "train/loss contains the penalty, which loss.beta = 0 makes smallest"),
    (["+sweeps=lr_beta", "sweep.objective=[val/cross_entropy,train/penalty]"], "contains the penalty"),
    (["loss=cross_entropy,penalised", "sweep.objective=train/loss"], "contains the penalty"),
    (["+sweeps=lr", "sweep.objective=val/cross_entrop"], "'val/cross_entrop' is not measured. Nearest are val/cross_entropy"),
    (["+sweeps=lr", "sweep.objective=val/other/cross_entropy"], "is not measured. Nearest are"),
    (["+sweeps=lr", "sweep.objective=generation/human/zipf"], "is not measured"),
    (["+sweeps=lr", "sweep.objective=5"], "must be a metric's name"),
    (["+sweeps=lr", "sweep.objective=[val/accuracy,val/accuracy]"], "names a metric twice"),
    (["+sweeps=lr", "sweep.objective=[]"], "must be a metric's name"),
    (["+sweeps=lr", "sweep.direction=up"], "must be minimize or maximize"),
    (["+sweeps=lr", "sweep.direction=[[minimize]]"], "must be minimize or maximize"),
    (["+sweeps=lr", "sweep.direction=[minimize,maximize]"], "as many as objectives: 1"),
    (["+sweeps=lr", "sampler.k=1,2", "sweep.joint=true"], "val/cross_entropy does not depend on sampler.k"),
    (["+sweeps=topk_only", "sweep.decode_objective=val/cross_entropy"], "'val/cross_entropy' is not measured"),
    (["data.workers=0,1", "sweep.n_trials=3"], "does not depend on data.workers"),
    (["+sweeps=topk_only", "sampler.k=range(1, 258)"], "more than 256 combinations"),
    (["+sweeps=lr", "sweep.sampler=grid"], "no finite set of values"),
    (["+sweeps=lr", "sweep.sampler=bayes"], "must be one of tpe"),
    (["+sweeps=lr", "sweep.sampler_options={startup: 3}"], "The options are those of optuna.samplers.TPESampler"),
    (["+sweeps=lr", "sweep.pruner_options={x: 3}"], "The options are those of optuna.pruners.SuccessiveHalvingPruner"),
    (["+sweeps=lr", "sweep.pruner=threshold"], "Either lower or upper"),
    (["+sweeps=lr", "sweep.pruner=median", "sweep.objective=[val/accuracy,seconds]"], "cannot judge several objectives"),
    (["+sweeps=lr", "sweep.sampler=cmaes", "sweep.objective=[val/accuracy,seconds]"], "cannot search for several objectives"),
    (["+sweeps=optimizers", "sweep.sampler=cmaes"], "cannot search a space with conditions"),
    (["+sweeps=lr", "sweep.n_trials=0"], "must be at least 1"),
    (["+sweeps=lr", "sweep.n_trials=2", "sweep.enqueue=[{optimizer.lr: 1e-3},{optimizer.lr: 2e-3}]"], "Set sweep.n_trials=3"),
    (["+sweeps=lr", "sweep.enqueue=[{optimizer.lr: 5}]"], "optimizer.lr=5 is not in the space"),
    (["+sweeps=lr", "sweep.enqueue=[{x: 5}]"], "x=5 is not in the space"),
    (["+sweeps=lr", "sweep.enqueue=[5]"], "must be a list of points"),
    (["+sweeps=lr", "sweep.constraints={time: 5}"], "must give one of peak_memory, seconds, parameters"),
    (["+sweeps=lr", "sweep.constraints={seconds: -5}"], "a most above 0"),
    (["+sweeps=lr", "sweep.name=../up"], "must be 1 to 128 letters"),
    (["+sweeps=lr", "sweep.nam=x"], "Did you mean sweep.name?"),
    (["+sweeps=lr", "sweep.slots=0"], "must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_right_is_refused_in_one_line_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([QUICK, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert list(here.iterdir()) == []


def test_refusals_and_what_is_shown_load_no_torch_and_make_no_folder(tmp_path: Path) -> None:
    code = """
import sys
from gpt2_lightning.__main__ import main
from gpt2_lightning.sweep import command
command.make_slots = None
for words in {words}:
    main(words)
assert main(["--help", "+sweeps=lr"]) == 0
assert "torch" not in sys.modules and "scipy" not in sys.modules
"""
    words = [[QUICK, *words] for words, _ in REFUSED[1::9]] + [["list", "sweeps"], [QUICK, "optimizer.lr=1e-3,1e-2"],
             ["--multirun", "optimizer.lr=interval(0,1)"], [QUICK, "+sweeps=lr", "--cfg", "job"]]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code.format(words=words)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "beta_lr_topk" in done.stdout and "optimizer.lr: tag(log, interval(5e-4, 3e-2))" in done.stdout


def test_hydra_lists_the_sweeper_and_shows_the_study(process: Command, tmp_path: Path) -> None:
    assert "GPT2LightningSweeper" in process("--info", "plugins").stdout
    shown = process(QUICK, "+sweeps=lr", "loss.beta=interval(0, 1)", "--cfg", "job", "sweep.storage=mysql://u:canary@h/d?x=y")
    assert "loss.beta: interval(0, 1)" in shown.stdout and "n_trials: 8" in shown.stdout
    assert "canary" not in shown.stdout + shown.stderr
    wrong = process("--cfg", "job", "optimizer.lrr=1")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_several_values_without_a_study_are_refused_with_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([QUICK, "optimizer.lr=1e-3,1e-2"]) == 2
    assert "Add +sweeps=NAME or sweep.n_trials=... to search, or --multirun to try them all" in capsys.readouterr().err


URL = "postgresql://user:pa%40ss@host/db?sslmode=disable"


@pytest.mark.parametrize("word", [f"sweep.storage={URL}", f"+sweep.storage={URL}", f"sweep.storage='{URL}'"])
def test_a_storage_s_url_is_taken_as_it_is_and_is_in_nothing_that_is_composed(word: str) -> None:
    plan = plan_of("+sweeps=lr", word)
    assert plan.sweep.storage == URL
    config = plan.variants.at({"optimizer.lr": 0.01} | plan.of_trial("trial-000", 2))
    assert "pa%40ss" not in f"{config} {plan.asked()} {plan.words} {plan.base}"


ASKED = ["+sweeps=lr_beta", "trainer.clip=0.5", "seed=1,2", "optimizer.lr=1e-3,2e-3"]


def test_what_is_asked_does_not_depend_on_the_order_of_the_words() -> None:
    assert plan_of(*ASKED).asked() == read_plan([*reversed(ASKED), QUICK]).asked()


@pytest.mark.parametrize(
    ("word", "equal"),
    [("loss.beta=interval(0,1)", False), ("sweep.objective=val/accuracy", False), ("sweep.direction=maximize", False),
     ("trainer.clip=1", False), ("sweep.constraints={seconds: 60}", False), ("sampler.k=1,2", False),
     ("sweep.devices_per_trial=2", False), ("sweep.n_trials=30", True), ("sweep.slots=3", True), ("sweep.sampler=random", True),
     ("data.workers=1", True), ("run.folder=x", True), ("sweep.retries=1", True)],
)  # fmt: skip
def test_a_study_is_held_to_all_that_makes_trials_comparable(word: str, equal: bool) -> None:
    assert (plan_of(*ASKED, word).asked() == plan_of(*ASKED).asked()) == equal


@pytest.mark.parametrize(
    ("word", "equal"),
    [("sampler.k=5", True), ("run.name=x", True), ("data.workers=1", True), ("checkpoint.keep=5", True),
     ("samples.measure=4", True),
     ("trainer.threads=1", True), ("resume=never", True), ("optimizer.lr=1", False), ("seed=1", False), ("loss.beta=1", False),
     ("trainer.max_steps=9", False), ("trainer.devices=2", False), ("augment=noise", False), ("data.batch_size=2", False),
     ("trainer.val_every=3", False), ("data.val_batches=3", False)],
)  # fmt: skip
def test_a_fingerprint_is_equal_exactly_for_equal_trainings(word: str, equal: bool) -> None:
    assert (fingerprint(compose_config([word])) == fingerprint(compose_config([]))) == equal


def test_files_that_change_meanwhile_do_not_change_the_study(here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    file = here / "conf/experiment/mine.yaml"
    file.write_text("# @package _global_\ntrainer: {max_steps: 9}\n")
    plan = read_plan(["+experiment=mine", "optimizer=sgd,adam", "loss.beta=interval(0, 1)"])
    file.write_text("# @package _global_\ntrainer: {max_steps: 10}\n")
    for option in ("sgd", "adam"):
        config = plan.variants.at({"optimizer": option, "loss.beta": 0.5} | plan.of_trial("trial-001", 3))
        assert (config.trainer.max_steps, config.optimizer.name, config.loss.beta) == (9, option, 0.5)
        assert (config.run.id, config.trainer.threads, config.run.name) == ("trial-001", 3, "mine")


VALUES: list[tuple[str, Any]] = [
    ("sampler.k", None), ("optimizer.betas", [0.5, 0.6]), ("data.path", None), ("seed", 3), ("trainer.compile", True),
    ("trainer.clip", 1), ("augment.order", ["noise", "swap", "reverse", "length"]), ("run.folder", "it's a, {b} [c]: é $x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_point_s_values_reach_the_run_as_they_are(key: str, value: Any) -> None:
    node = asdict(plan_of("+sweeps=lr").variants.at({"optimizer": "adamw", key: value}))
    for part in key.split("."):
        node = node[part]
    assert node == value


def test_reports_by_tokens_stand_at_tokens() -> None:
    plan = plan_of("+sweeps=lr", "sweep.devices_per_trial=2", "data.batch_size=4", "trainer.accumulate=3")
    assert plan.marks == (47, 188)
    by_tokens = replace(plan, sweep=replace(plan.sweep, report_by="tokens"))
    assert by_tokens.marks == (47 * 4 * 3 * 128 * 2, 188 * 4 * 3 * 128 * 2)


def test_a_plain_multirun_is_a_grid_of_runs_named_by_its_words() -> None:
    words = [QUICK, "optimizer.lr=1e-3,2e-3", "optimizer=choice(sgd, adam)"]
    plan = read_plan(multirun_words(words))
    assert plan.points == [{"optimizer.lr": lr, "optimizer": o} for lr in (0.001, 0.002) for o in ("sgd", "adam")]
    assert (plan.n_trials, plan.sweep.baseline, plan.sweep.pruner, plan.sweep.sampler) == (4, False, "none", "grid")
    assert plan.sweep.name.startswith("multirun-") and len(plan.sweep.name) == len("multirun-3f2a91c0")
    same = read_plan(multirun_words([*reversed(words), "sweep.slots=2", "sweep.storage=mysql://u:p@h/d"]))
    assert same.sweep.name == plan.sweep.name
    assert read_plan(multirun_words([*words, "seed=2"])).sweep.name != plan.sweep.name
    assert read_plan(multirun_words([*words, "sweep.name=mine"])).sweep.name == "mine"
    two = read_plan(multirun_words([*words, "sweep.devices_per_trial=2"]))
    assert two.variants.at(two.of_trial("trial-000", None)).trainer.devices == 2


def test_a_multirun_tries_experiments_too() -> None:
    plan = read_plan(multirun_words(["+experiment=quickstart,recall", "optimizer.lr=1e-3,2e-3"]))
    assert len(plan.points) == 4 and not plan.sweep.baseline
    runs = [plan.variants.at(point) for point in plan.points]
    assert [(run.data.synthetic, run.optimizer.lr) for run in runs] == [
        (None, 1e-3), (None, 2e-3), ("recall", 1e-3), ("recall", 2e-3)]  # fmt: skip
    with pytest.raises(ConfigError, match="no such experiment"):
        read_plan(multirun_words(["+experiment=quickstart,recal"]))


def test_a_multirun_of_a_study_or_with_a_number_of_trials_is_a_search() -> None:
    for words in (
        ["+sweeps=lr"],
        ["optimizer.lr=interval(0, 1)", "sweep.n_trials=5"],
        ["loss.beta=0,1", "sweep.sampler=random"],
    ):
        assert multirun_words([QUICK, *words]) == [QUICK, *words]


def test_an_interval_in_a_plain_multirun_is_refused_with_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--multirun", "-m"):
        assert main([flag, QUICK, "optimizer.lr=interval(0, 1)"]) == 2
        assert "Set 'optimizer.lr=choice(...)', or search it: sweep.sampler=tpe sweep.n_trials=20" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("words", [["--multirun"], ["train", "-m"]])
def test_every_door_of_a_multirun_leads_to_the_same_study(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.sweeper import Sweeper

    seen: list[Plan] = []
    monkeypatch.setattr("gpt2_lightning.sweep.command.study", seen.append)
    assert main([*words, "seed=1,2"]) == 0
    (door,) = [found for found in Plugins.instance().discover(Sweeper) if "GPT2" in found.__name__]
    with pytest.raises(SystemExit):
        door().sweep(["seed=1,2"])
    assert seen[0].words == seen[1].words and seen[0].words[0] == "sweep.sampler=grid"


def test_hydra_finds_the_schema_of_the_files_of_other_sweepers() -> None:
    assert (config_folder() / "config.yaml").read_text(encoding="utf-8").count("hydra/sweeper: gpt2_lightning") == 1


def test_the_measures_of_generation_are_those_that_are_taken() -> None:
    import torch

    from gpt2_lightning.decoder import Decoder
    from gpt2_lightning.generation.measures import measure_generation
    from gpt2_lightning.settings.decoder import DecoderConfig
    from gpt2_lightning.settings.sampler import SamplerConfig
    from gpt2_lightning.sweep.plan import OF_GENERATION

    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(n_layer=1, n_head=1, n_embd=8, block_size=64, vocab_size=9))
    measures = measure_generation(decoder, torch.randint(9, (8, 64)), SamplerConfig(k=None), 32, 0, batch_size=8)
    assert {name for name in measures if "/human/" not in name} == {f"generation/{name}" for name in OF_GENERATION}
