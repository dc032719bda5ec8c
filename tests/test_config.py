"""What a person writes is checked before torch is loaded: one line with key, value, rule and remedy."""

import sys
from pathlib import Path

import pytest

from gpt2_lightning.__main__ import main
from gpt2_lightning.config import compose_config, group_options, load_config, to_yaml
from gpt2_lightning.errors import ConfigError
from tests.conftest import Command

BAD = [
    ("optimizer.lrr=1", "optimizer.lrr = 1", "Did you mean optimizer.lr?"),
    ("+optimizer.lrr=1", "optimizer.lrr = 1", "Did you mean optimizer.lr?"),
    ("lr=1", "lr = 1", "Did you mean optimizer.lr?"),
    ("trainer.maxsteps=10", "trainer.maxsteps", "Did you mean trainer.max_steps?"),
    ("+experiment=quikstart", "experiment = quikstart", "There are quickstart"),
    ("experiment=quikstart", "experiment = quikstart", "There are quickstart"),
    ("+experiment=../../x", "experiment", "no such experiment"),
    ("+sweeps=nope", "sweeps", "no such sweeps"),
    ("optimizer=adamv", "optimizer = adamv", "There are adam, adamw"),
    ("debug=fast", "debug = fast", "There are fast_dev_run"),
    ("model.n_head=5", "model.n_head = 5", "must divide the width model.n_embd = 256. Set model.n_head=4"),
    ("model.n_layer=0", "model.n_layer = 0", "must be at least 1"),
    ("model.n_layer=two", "model.n_layer = two", "could not be converted to Integer"),
    ("model.n_layer=1.5", "model.n_layer", "could not be converted to Integer"),
    ("model.norm=both", "model.norm = both", "must be one of pre, post"),
    ("model.dropout=nan", "model.dropout = nan", "must be finite"),
    ("model.dropout=1.5", "model.dropout = 1.5", "must be at least 0 and below 1"),
    ("model.vocab_size=50257", "model.vocab_size = 50257", "differs from the 257 words of data.tokenizer=bytes"),
    ("data.tokenizer=gpt2", "model.vocab_size = 257", "Set model.vocab_size=50257"),
    ("loss.beta=-1", "loss.beta = -1", "must be at least 0"),
    ("loss.beta=nan", "loss.beta = nan", "must be finite"),
    ("loss.beta=inf", "loss.beta = inf", "must be finite"),
    ("optimizer.lr=-1", "optimizer.lr = -1", "must be at least 0"),
    ("optimizer.lr=nan", "optimizer.lr = nan", "must be finite"),
    ("optimizer.lr=fast", "optimizer.lr = fast", "could not be converted to Float"),
    ("optimizer.lr=", "optimizer.lr", "could not be converted to Float"),
    ("optimizer.lr=0", "optimizer.lr = 0", "add optimizer.allow_zero_lr=true"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas = [0.9, 1.0]", "must be at least 0 and below 1"),
    ("optimizer.betas=[0.9]", "optimizer.betas = [0.9]", "must be two numbers"),
    ("schedule.warmup_steps=-1", "schedule.warmup_steps = -1", "must be at least 0"),
    ("sampler.k=0", "sampler.k = 0", "must be at least 1"),
    ("sampler.k=300", "sampler.k = 300", "must be at most the vocabulary, model.vocab_size = 257"),
    ("sampler.temperature=-0.1", "sampler.temperature = -0.1", "must be at least 0"),
    ("sampler.temperature=nan", "sampler.temperature = nan", "must be finite"),
    ("sampler.k=2.5", "sampler.k", "could not be converted to Integer"),
    ("sampler.p=0", "sampler.p = 0", "must be above 0 and at most 1"),
    ("sampler.p=1.1", "sampler.p = 1.1", "must be above 0 and at most 1"),
    ("sampler.p=nan", "sampler.p = nan", "must be finite"),
    ("sampler.min_p=-0.1", "sampler.min_p = -0.1", "must be above 0 and at most 1"),
    ("sampler.min_p=2", "sampler.min_p = 2", "must be above 0 and at most 1"),
    ("sampler.typical=0", "sampler.typical = 0", "must be above 0 and below 1"),
    ("sampler.typical=1", "sampler.typical = 1", "must be above 0 and below 1"),
    ("sampler.epsilon=0", "sampler.epsilon = 0", "must be above 0 and below 1"),
    ("sampler.epsilon=1", "sampler.epsilon = 1", "must be above 0 and below 1"),
    ("sampler.tau=0", "sampler.tau = 0", "must be above 0"),
    ("sampler.tau=inf", "sampler.tau = inf", "must be finite"),
    ("sampler.draw=random", "sampler.draw = random", "must be one of proportional, uniform"),
    ("sampler.repetition_penalty=0", "sampler.repetition_penalty = 0", "must be above 0"),
    ("sampler.no_repeat_ngram=-1", "sampler.no_repeat_ngram = -1", "must be at least 0"),
    ("sampler.beams=0", "sampler.beams = 0", "must be at least 1"),
    ("sampler.length_penalty=nan", "sampler.length_penalty = nan", "must be finite"),
    ("sampler.top_p=0.9", "sampler.top_p = 0.9", "Did you mean sampler.p?"),
    ("sampler=topk", "sampler = topk", "There are top_k"),
    ("data.batch_size=0", "data.batch_size = 0", "must be at least 1"),
    ("data.batch_size=2.5", "data.batch_size", "could not be converted to Integer"),
    ("data.workers=-1", "data.workers = -1", "must be at least 0"),
    ("data.corpora.shakespeare.holdout_every=1", "data.corpora.holdout_every = 1", "must be at least 2"),
    ("data.corpora.shakespeare.weight=-1", "data.corpora.weight = -1", "must be at least 0"),
    ("data.corpora.shakespeare.weight=nan", "data.corpora.weight = nan", "must be finite"),
    ("data.corpora.shakespeare.weight=inf", "data.corpora.weight = inf", "must be finite"),
    ("data.corpora.shakespeare.weight=0", "data.corpora", "all weights are 0"),
    ("data.corpora.shakespeare.epochs=0", "data.corpora.epochs = 0", "must be at least 1"),
    ("data.corpora.shakespeare.wieght=1", "data.corpora.shakespeare.wieght", "Did you mean data.corpora.shakespeare.weight?"),
    ("data.weigh=bytes", "data.weigh = bytes", "must be one of documents, tokens"),
    ("augment.swap.p=1.5", "augment.swap.p = 1.5", "must be at least 0 and at most 1"),
    ("augment.noise.strength=-0.1", "augment.noise.strength = -0.1", "must be at least 0 and at most 1"),
    ("augment.length.p=nan", "augment.length.p = nan", "must be finite"),
    ("augment.reverse.unit=lines", "augment.reverse.unit = lines", "must be one of sentences, words, tokens"),
    ("augment.swap.window=0", "augment.swap.window = 0", "must be at least 1"),
    ("augment.order=[swap]", "augment.order", "must hold each of length, reverse, swap, noise exactly once"),
    ("augment=noize", "augment = noize", "There are noise"),
    ("trainer.accumulate=0", "trainer.accumulate = 0", "must be at least 1"),
    ("trainer.max_steps=-5", "trainer.max_steps = -5", "must be at least 1"),
    ("trainer.max_steps=yes", "trainer.max_steps", "could not be converted to Integer"),
    ("trainer.clip=-1", "trainer.clip = -1", "must be at least 0"),
    ("trainer.clip=nan", "trainer.clip = nan", "must be finite"),
    ("trainer.precision=fp8", "trainer.precision = fp8", "must be one of auto, 32-true"),
    ("trainer.devices=0", "trainer.devices = 0", "must be at least 1"),
    ("run.name=../up", "run.name = ../up", "must be 1 to 128 letters"),
    ("run.name=a/b", "run.name = a/b", "must be 1 to 128 letters"),
    ("run.id=" + "x" * 300, "run.id", "must be 1 to 128 letters"),
    ("seed=-1", "seed = -1", "must be at least 0"),
    ("data=local", "data.corpora.path", "Set data=local data.path=FILE"),
    ("data.path=x.txt", "data.path = x.txt", "has no effect on these corpora. Set data=local"),
    ("data.split=line", "data.split = line", "has no effect on these corpora"),
    ("data.corpora.shakespeare.weight=1e308", "data.corpora.weight", "at most 1000000000.0"),
    ("data.path=it's a.txt", "override", "Quote what has blanks"),
    ("nonsense", "command = nonsense", "There are train, sweep, trial, data, generate, evaluate, export, "),
    ("trainer.max_steps", "trainer.max_steps", ""),
    ("data.path=a b'c", "override", "Quote what has blanks"),
]


@pytest.mark.parametrize(("word", "key", "rule"), BAD, ids=[word[:30] for word, _, _ in BAD])
def test_a_wrong_word_gets_one_line_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], word: str, key: str, rule: str
) -> None:
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert key in err
    assert rule in err and "MISSING" not in err
    assert list(here.iterdir()) == []


def test_errors_and_help_load_no_torch(command: Command, tmp_path: Path) -> None:
    code = "import sys; from gpt2_lightning.__main__ import main; main({words}); assert 'torch' not in sys.modules"
    import subprocess

    for words in (["--help"], ["list"], ["optimizer.lrr=1"], ["model.n_head=5"], ["generate", "run=x", "sampler.k=0"]):
        done = subprocess.run([sys.executable, "-c", code.format(words=words)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_whole_command_exits_with_the_status(process: Command, tmp_path: Path) -> None:
    done = process("+experiment=quickstart", "optimizer.lrr=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: unknown key (optimizer.lrr = 1): no setting has this name. Did you mean optimizer.lr?\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(group_options("experiment")))
def test_every_experiment_composes_and_says_what_it_is_for(name: str) -> None:
    assert compose_config([f"+experiment={name}"]).run.name == name
    assert "?" in group_options("experiment")[name]


@pytest.mark.parametrize(
    "group", ["augment", "model", "optimizer", "schedule", "sampler", "data", "loss", "task", "trainer", "debug"]
)
def test_every_option_has_a_comment_and_composes(group: str) -> None:
    for name, comment in group_options(group).items():
        assert len(comment) > 10, name
        words = [f"{group}={name}"]
        if group == "model" and not name.startswith(("nano", "micro", "small")):
            words.append("data=shakespeare_bpe")
        if group == "data" and name not in (
            "shakespeare",
            "bundled",
            "local",
            "recall",
            "spam",
            "shakespeare_dialogue",
            "verses_en_es",
        ):
            words.append("model=gpt2")
        if name == "local":
            words.append("data.path=x.txt")
        compose_config(words)


def test_the_typed_value_wins_over_the_experiment_wherever_it_stands() -> None:
    for words in (["trainer.max_steps=7", "+experiment=quickstart"], ["+experiment=quickstart", "trainer.max_steps=7"]):
        assert compose_config(words).trainer.max_steps == 7
    assert compose_config(["debug=fast_dev_run", "+experiment=quickstart"]).trainer.max_steps == 3


def test_one_corpus_can_have_its_own_augmentation() -> None:
    config = compose_config(["data.corpora.shakespeare.augment.swap.p=0.3"])
    own = config.data.corpora["shakespeare"].augment
    assert (own.swap.p, own.noise.p, config.augment.swap.p) == (0.3, 0.0, 0.0)


def test_config_yaml_reads_back_equal(here: Path) -> None:
    words = ["optimizer=muon", "loss.beta=0.5", "run.id=x", "augment=all", "data.corpora.shakespeare.augment.swap.p=0.3"]
    config = compose_config(["+experiment=quickstart", *words])
    (here / "config.yaml").write_text(to_yaml(config))
    assert load_config("config.yaml", []) == config
    assert load_config("config.yaml", ["trainer.max_steps=7"]).trainer.max_steps == 7
    for change, message in (
        ("optimizer.lrr=1", "lrr"),
        ("trainer.max_steps=x", "Integer"),
        ("loss.beta=-1", "at least 0"),
        ("model=nano", "is a file, and the settings of 'config.yaml' are whole already"),
        ("debug=fast_dev_run", "Set single keys"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config("config.yaml", [change])


def test_the_current_folders_own_experiments_are_found(here: Path) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    (here / "conf/experiment/mine.yaml").write_text("# @package _global_\n# Mine?\ntrainer: {max_steps: 9}\n")
    assert group_options("experiment")["mine"] == "Mine?"
    assert compose_config(["+experiment=mine"]).trainer.max_steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_steps: 9}\ntrainer: {max_steps: 10}\n", r"mine.yaml:\d.*duplicate key"),
        ("trainer: [\n", r"mine.yaml:\d"),
        ("data: {corpora: {a: {path: x}, a: {path: y}}}\n", r"mine.yaml:\d.*duplicate key"),
        ("data: {corpora: {shakespeare: {weigt: 1}}}\n", "Did you mean data.corpora.shakespeare.weight?"),
        ("data: {corpora: {../up: {path: x}}}\n", "'../up' is no name"),
        ("trainer: {max_step: 9}\n", "Did you mean trainer.max_steps?"),
        ("trainer: {max_steps: no}\n", "trainer.max_steps.*Integer"),
        ("model: {n_layer: -2}\n", "model.n_layer = -2"),
    ],
)
def test_a_wrong_file_is_named(here: Path, text: str, message: str) -> None:
    (here / "conf/experiment").mkdir(parents=True)
    (here / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError, match=message):
        compose_config(["+experiment=mine"])


def test_cfg_shows_the_configuration_and_runs_nothing(command: Command, tmp_path: Path) -> None:
    done = command("+experiment=quickstart", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "max_steps:" in done.stdout
    assert list(tmp_path.iterdir()) == []
