"""The space: what Hydra's sweep grammar may say, what is refused and why, and that no value changes on its way."""

from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from gpt2_lightning.errors import ConfigError
from gpt2_lightning.sweep.space import OUTSIDE, Space, decode_time, override_text, plain_value, read_space

CONDITIONAL = {
    "optimizer": "choice(sgd, adam)",
    "optimizer.lr": {"optimizer=sgd": "interval(0.1, 1)", "optimizer=adam": "tag(log, interval(1e-4, 1e-2))"},
    "optimizer.momentum": {"optimizer=sgd": [0.0, 0.9]},
}


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(0, 1)", FloatDistribution(0, 1)),
        ("interval(1, 1)", FloatDistribution(1, 1)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("tag(int, interval(1, 9))", IntDistribution(1, 9)),
        ("int(interval(1, 9))", IntDistribution(1, 9)),
        ("tag(int, interval(0.5, 3.9))", IntDistribution(1, 3)),
        ("tag(int, log, interval(0.5, 8))", IntDistribution(1, 8, log=True)),
        ("range(4)", IntDistribution(0, 3)),
        ("range(1, 9)", IntDistribution(1, 8)),
        ("range(1, 9, 4)", IntDistribution(1, 5, step=4)),
        ("range(9, 1, -4)", IntDistribution(5, 9, step=4)),
        ("tag(log, range(1, 9))", IntDistribution(1, 8, log=True)),
        ("shuffle(range(1, 5))", IntDistribution(1, 4)),
    ],
)
def test_what_is_a_range(text: str, distribution: Any) -> None:
    (parameter,) = read_space({"model.n_layer": text}).parameters
    assert parameter.distribution == distribution


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b", ("a", "b")),
        ("choice(a, b)", ("a", "b")),
        ("choice('a, b', \"c\")", ("a, b", "c")),
        ("sort(3, 1, 2)", (1, 2, 3)),
        ("str(choice(1, 2))", ("1", "2")),
        ("choice(2, 2.5, true, null, x)", (2, 2.5, True, None, "x")),
        ("choice([0.9, 0.95], [0.9, 0.999])", ([0.9, 0.95], [0.9, 0.999])),
        ("choice({a: 'x y'}, {a: z})", ({"a": "x y"}, {"a": "z"})),
        ("range(0, 1, 0.25)", (0.0, 0.25, 0.5, 0.75)),
        ("gpt2", ("gpt2",)),
        ("null", (None,)),
        ([1, 2, None], (1, 2, None)),
        ([[1, 2], [3]], ([1, 2], [3])),
        (0.5, (0.5,)),
        (None, (None,)),
        ("1,null", (1, None)),
        ("choice(null)", (None,)),
        ("choice('null', nullify, null)", ("null", "nullify", None)),
        (True, (True,)),
    ],
)
def test_what_is_a_choice(text: Any, values: tuple[Any, ...]) -> None:
    (parameter,) = read_space({"key": text}).parameters
    assert parameter.values == values
    assert isinstance(parameter.distribution, CategoricalDistribution)
    assert [parameter.value(parameter.told(value)) for value in values] == list(values)


WRONG = [
    ("interval(2, 1)", "low end above its high one. Swap them: 1.0, 2.0"),
    ("tag(log, interval(0, 1))", "must begin above 0 on a logarithmic scale"),
    ("tag(log, interval(-1, 1))", "must begin above 0 on a logarithmic scale"),
    ("tag(log, range(0, 4))", "must begin above 0 on a logarithmic scale"),
    ("tag(log, range(1, 9, 2))", "cannot have a step on a logarithmic scale"),
    ("interval(nan, 1)", "must have finite ends"),
    ("interval(0, inf)", "must have finite ends"),
    ("tag(int, interval(1.2, 1.8))", "holds no integer"),
    ("tag(loga, interval(1, 2))", "tags that mean nothing here: loga. The tags are log and int"),
    ("tag(log, choice(1, 2))", "tags that mean nothing on a choice: log"),
    ("range(3, 3)", "holds no value"),
    ("range(1, 9, 0)", "a step other than 0"),
    ("range(0, 1, 1e-9)", "more than 1000 values"),
    ("choice()", "empty choice is not legal"),
    ([], "must offer values"),
    ("choice(1, 1)", "each once"),
    ("choice(1, 1.0)", "each once"),
    ("choice(1, true)", "each once"),
    ("choice(1, nan)", "finite"),
    ("interval(1, 2), interval(3, 4)", "an interval among values"),
    ("glob(*)", "glob() is not supported. Name the options: choice(a, b)"),
    ("interval(1,", "extended override syntax"),
    ("interval(1)", "missing a required argument: 'end'"),
    ("interval(a, b)", "str is incompatible"),
    ("log(1, 2)", "Unknown function 'log'"),
    ({}, "must be key=value of another key"),
    ({"other=1": "interval(0, 1)"}, "must be key=value of another key"),
    ({"lr": "interval(0, 1)"}, "A key is written with dots"),
]


@pytest.mark.parametrize(("text", "rule"), WRONG, ids=[str(text) for text, _ in WRONG])
def test_a_wrong_space_is_refused_with_its_key_and_the_rule(text: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space({"optimizer.lr": text})
    assert caught.value.key == "optimizer.lr"
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("params", "rule"),
    [
        ({"a": [1, 2], "b": {"a=3": "interval(0, 1)"}}, "a cannot be 3: it is one of choice(1, 2)"),
        ({"a": "interval(0, 1)", "b": {"a=3": "interval(0, 1)"}}, "a cannot be 3: it is one of interval(0.0, 1.0)"),
        ({"a": [1, 2], "b": {"a=1": [1, 2]}, "c": {"b=1": [1, 2]}}, "which has no condition itself"),
        ({"a": [1, 2], "b": {"a": [1, 2]}}, "cannot be : it is one of"),
        ({"a": [1, 2], "b": {"a=1": [1, 2], "a=1.0": [3]}}, "has the same condition twice"),
        ({"a": [1, 2], "b": {"a=interval(0,1)": [1]}}, "cannot be interval(0,1)"),
    ],
)
def test_a_wrong_condition_is_refused(params: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(params)
    assert rule in str(caught.value)


def ask(space: Space, n: int, seed: int = 0) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.ask(study.ask()) for _ in range(n)]


def test_a_condition_asks_only_what_it_allows() -> None:
    space = read_space(dict(reversed(CONDITIONAL.items())))
    points = ask(space, 40)
    assert {point["optimizer"] for point in points} == {"sgd", "adam"}
    for point in points:
        low, high = (0.1, 1) if point["optimizer"] == "sgd" else (1e-4, 1e-2)
        assert low <= point["optimizer.lr"] <= high
        assert ("optimizer.momentum" in point) == (point["optimizer"] == "sgd")
        assert space.told(point) is not None
    assert [p.name for p in space.parameters][:1] == ["optimizer"]
    assert len({p.name for p in space.parameters}) == 4


@pytest.mark.parametrize(("condition", "value"), [("a=null", None), ("a=0.10", 0.1), ("a='x y'", "x y"), ("a=true", True)])
def test_a_condition_is_read_as_a_value(condition: str, value: Any) -> None:
    space = read_space({"a": [None, 0.1, "x y", True], "b": {condition: [1, 2]}})
    assert space.parameters[1].when == ("a", value)
    assert space.told({"a": value, "b": None}) is None
    assert space.told({"a": value}) is None
    assert space.told({"a": value, "b": 2}) == {"a": value, space.parameters[1].name: 2}


def test_a_condition_may_wait_for_an_integer_of_a_range() -> None:
    space = read_space({"a": "range(1, 4)", "b": {"a=2": [1, 2]}})
    assert [point.get("b") for point in space.grid()] == [None, 1, 2, None]


def test_none_is_a_value_like_others() -> None:
    space = read_space({"k": [1, None]})
    assert space.told({"k": None}) == {"k": None}
    assert space.part_of({"k": None}) == {"k": None}
    assert space.told({"k": 5}) is None
    assert space.told({"k": True}) is None
    assert space.told({}) is None
    assert space.grid() == space.candidates() == [{"k": 1}, {"k": None}]
    assert {point["k"] for point in ask(space, 20)} == {1, None}
    study = optuna.create_study()
    study.enqueue_trial(space.part_of({"k": None}))
    assert space.ask(study.ask()) == {"k": None}


@pytest.mark.parametrize(
    ("value", "told"),
    [(2, 2), (2.0, 2), (3, OUTSIDE), (2.5, OUTSIDE), (11, OUTSIDE), (True, OUTSIDE), (None, OUTSIDE), ("2", OUTSIDE)],
)
def test_what_lies_in_a_range(value: Any, told: Any) -> None:
    (parameter,) = read_space({"k": "range(2, 11, 4)"}).parameters
    assert parameter.told(value) is told or parameter.told(value) == told


def test_a_point_that_is_not_in_the_space_is_refused_by_its_key() -> None:
    space = read_space(CONDITIONAL)
    assert space.part_of({"optimizer": "sgd", "optimizer.lr": 1}) == {"optimizer": "sgd", "optimizer.lr (optimizer=sgd)": 1.0}
    for point in ({"optimizer": "muon"}, {"optimizer.lr": 0.5}, {"optimizer": "adam", "optimizer.lr": 0.5}, {"x": None}):
        with pytest.raises(ConfigError, match="is not in the space"):
            space.part_of(point)


scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True).filter(
    lambda name: name not in ("null", "nan", "inf", "true", "false")
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


def read_back(text: str) -> Any:
    return plain_value(OverridesParser.create().parse_override(f"key={text}").value())


@settings(deadline=None, max_examples=60)
@given(values)
def test_what_is_written_is_read_back_by_hydra(value: Any) -> None:
    back = read_back(override_text(value))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "it's", '"', "a,b", "{x}", "[", "$HOME", "${seed}", "\\", "a\\'", "é", "日本", "null", "True",
              "NaN", "inf", "1e3", "007", "-1", "a=b", "a:b", "a#b", "choice(a,b)", "x/y.z-1", "?", "*", "\n", "\t", "~"]
)  # fmt: skip
def test_hostile_text_is_read_back_as_it_is(value: str) -> None:
    assert read_back(override_text(value)) == value
    assert read_back(override_text({"a-b": [value]})) == {"a-b": [value]}


unlike = st.lists(scalars, min_size=1, max_size=6, unique_by=lambda v: v if v == v else "nan")


@settings(deadline=None, max_examples=60)
@given(unlike, st.data())
def test_a_choice_tells_and_gives_back_each_of_its_values(offered: list[Any], data: st.DataObject) -> None:
    space = read_space({"key": offered})
    value = data.draw(st.sampled_from(offered))
    told = space.told({"key": value})
    assert told is not None and told == space.part_of({"key": value})
    study = optuna.create_study()
    study.enqueue_trial(told)
    back = space.ask(study.ask())["key"]
    assert back == value and type(back) is type(value)
    assert read_space({"key": str(space.parameters[0])}).as_asked() == space.as_asked()


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_an_interval_tells_and_gives_back_what_lies_in_it(low: float, width: float, share: float) -> None:
    space = read_space({"key": f"interval({low!r}, {low + width!r})"})
    value = min(low + share * width, low + width)
    assert space.told({"key": value}) == {"key": value}
    assert space.told({"key": low - 1}) is None
    assert read_space({"key": str(space.parameters[0])}).as_asked() == space.as_asked()


@settings(deadline=None, max_examples=60)
@given(st.integers(-50, 50), st.integers(1, 50), st.integers(1, 7))
def test_a_range_holds_what_python_s_holds(start: int, length: int, step: int) -> None:
    space = read_space({"key": f"range({start}, {start + length}, {step})"})
    held = [value for value in range(start - 5, start + length + 5) if space.told({"key": value})]
    assert held == list(range(start, start + length, step)) == [point["key"] for point in space.grid()]
    assert read_space({"key": str(space.parameters[0])}).as_asked() == space.as_asked()


def test_a_grid_is_in_the_order_of_nested_loops_and_knows_conditions() -> None:
    assert read_space({"a": "range(1, 3)", "b": "x,y"}).grid() == [{"a": a, "b": b} for a in (1, 2) for b in "xy"]
    params = {"optimizer": "sgd,adam", "m": {"optimizer=sgd": [0, 1]}}
    assert read_space(params).grid() == [{"optimizer": "sgd", "m": 0}, {"optimizer": "sgd", "m": 1}, {"optimizer": "adam"}]


def test_a_grid_of_an_interval_is_refused_with_what_to_do() -> None:
    for text in ("interval(0, 1)", "tag(log, range(1, 9))"):
        with pytest.raises(ConfigError) as caught:
            read_space({"loss.beta": text}).grid()
        assert "Set 'loss.beta=choice(...)', or search it: sweep.sampler=tpe sweep.n_trials=20" in str(caught.value)


def test_a_shuffled_choice_is_the_same_each_time() -> None:
    spaces = [read_space({"a": "shuffle(a,b,c,d,e,f)"}).as_asked() for _ in range(5)]
    assert all(space == spaces[0] for space in spaces)
    assert spaces[0] != read_space({"a": "choice(a,b,c,d,e,f)"}).as_asked()


def test_settings_of_decoding_are_apart_unless_joint() -> None:
    space = read_space({"loss.beta": "interval(0, 1)", "sampler.k": [1, None], "sampler": "top_k,top_p"})
    train, decode = space.parts(joint=False)
    assert [p.key for p in train.parameters] == ["loss.beta"]
    assert [p.key for p in decode.parameters] == ["sampler.k", "sampler"]
    assert [len(part) for part in space.parts(joint=True)] == [3, 0]
    assert decode_time("sampler.p") and not decode_time("samples.measure") and not decode_time("samplers")


def test_a_condition_between_training_and_decoding_needs_them_joint() -> None:
    for params in (
        {"optimizer": "sgd,adam", "sampler.k": {"optimizer=sgd": [1, 2]}},
        {"sampler.k": [1, 2], "loss.beta": {"sampler.k=1": "interval(0, 1)"}},
    ):
        space = read_space(params)
        assert len(space.parts(joint=True)[0]) == 2
        with pytest.raises(ConfigError, match="Set sweep.joint=true"):
            space.parts(joint=False)


def test_candidates_of_decoding() -> None:
    assert read_space({}).candidates() == []
    spread = [point["t"] for point in read_space({"t": "interval(0, 0.7)"}).candidates()]
    assert spread == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    log = [point["k"] for point in read_space({"k": "tag(log, int, interval(1, 128))"}).candidates()]
    assert log == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [point["t"] for point in read_space({"t": "interval(1, 1)"}).candidates()] == [1.0]
    params = {"sampler": "top_k,top_p", "sampler.k": {"sampler=top_k": [1, 2]}, "sampler.p": {"sampler=top_p": [0.5]}}
    assert read_space(params).candidates() == [
        {"sampler": "top_k", "sampler.k": 1}, {"sampler": "top_k", "sampler.k": 2}, {"sampler": "top_p", "sampler.p": 0.5}
    ]  # fmt: skip
    assert len(read_space({"k": "range(256)"}).candidates()) == 256
    for params in ({"k": "range(257)"}, {"k": "range(2, 1000000000)"}, {"k": "range(17)", "t": "range(16)"}):
        with pytest.raises(ConfigError, match="more than 256 combinations"):
            read_space(params).candidates()


def test_equal_spaces_are_asked_alike_and_others_are_not() -> None:
    one = read_space({"a": "choice(1, 2)", "b": "tag(log, interval(1e-3, 1))"}).as_asked()
    assert one == read_space({"b": "tag(log,interval(0.001,1.0))", "a": [1, 2]}).as_asked()
    for other in ("choice(1, 2, 3)", "choice(2, 1)", "choice('1', '2')", "range(1, 3)"):
        assert one != read_space({"a": other, "b": "tag(log, interval(1e-3, 1))"}).as_asked()
    assert one != read_space({"a": "choice(1, 2)", "b": "interval(1e-3, 1)"}).as_asked()
