"""Reading configuration files and checking them against structs."""

from typing import Annotated, Literal

import msgspec
import pytest

from coordexp.runtime.config_io import choice, convert, read_extended
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.registry import Registry

TERMS = Registry("loss term")
TERMS.register("giou")(object())
TERMS.register("l1")(object())


class Inner(msgspec.Struct, frozen=True):
    low: Annotated[int, msgspec.Meta(ge=0, description="smallest")] = 0
    high: int | None = None

    def __post_init__(self):
        if self.high is not None and self.high < self.low:
            raise ValueError("expected low <= high")


class Options(msgspec.Struct, frozen=True):
    name: str
    term: choice(TERMS, "term") = "giou"
    maybe: choice(TERMS) | None = None
    weights: dict[choice(TERMS), float] = {}
    mode: Literal["fill", "shrink"] = "fill"
    terms: Annotated[tuple[choice(TERMS), ...], msgspec.Meta(min_length=1)] = ("giou",)
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Annotated[Inner, msgspec.Meta(description="bounds")] = Inner()
    recipe: str | dict[str, int] = ""
    by_name: dict[str, Inner] = {}
    flag: bool = False


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"nam": "x"}, "^nam: unknown key, did you mean 'name'\\?\nname: required key is missing$"),
        ({"name": 3}, "^name: expected `str`, got `int`; found 3$"),
        ({"term": "giuo"}, "term: unknown loss term 'giuo', did you mean 'giou'\\?; expected \\['giou', 'l1'\\]"),
        ({"maybe": "l2"}, "maybe: unknown loss term 'l2', did you mean 'l1'"),
        ({"terms": ["l1", "l2"]}, "terms\\[1\\]: unknown loss term 'l2', did you mean 'l1'"),
        ({"terms": []}, "terms: expected `array` of length >= 1"),
        ({"weights": {"l2": 1}}, "weights.l2: unknown loss term 'l2', did you mean 'l1'"),
        ({"weights": {"l1": "much"}}, "weights.l1: expected `float`"),
        ({"mode": "fil"}, "mode: unknown value 'fil', did you mean 'fill'\\?; expected \\['fill', 'shrink'\\]"),
        ({"pair": [1.0]}, "pair: expected a list of 2 values; found \\[1.0\\]"),
        ({"inner": {"lw": 1}}, "inner.lw: unknown key, did you mean 'low'"),
        ({"inner": {"low": -1}}, "inner.low: expected `int` >= 0; found -1"),
        ({"inner": {"low": 2, "high": 1}}, "inner: expected low <= high"),
        ({"by_name": {"a": {"hihg": 1}}}, "by_name.a.hihg: unknown key, did you mean 'high'"),
        ({"recipe": {"a": "x"}}, "recipe.a: expected `int`"),
    ],
)
def test_problems_name_the_full_key_and_the_nearest_name(value, message):
    with pytest.raises(ConfigError, match=message):
        convert({"name": "x", **value} if "nam" not in value else value, Options)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        convert({"name": "x", "term": "l2", "inner": {"low": "few"}, "flg": True}, Options, "config.yaml", "a")
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        "config.yaml: a.term: unknown loss term 'l2', did you mean 'l1'?",
        "config.yaml: a.inner.low: expected `int`, got `str`",
        "config.yaml: a.flg: unknown key, did you mean 'flag'?",
    ]


def test_text_becomes_the_expected_type():
    text = {"name": "7", "flag": "false", "inner": {"low": "2", "high": "null"}, "weights": {"l1": "0.5"}}
    options = convert({**text, "pair": ["0.1", 1]}, Options)
    assert (options.name, options.flag, options.inner) == ("7", False, Inner(2, None))
    assert (options.weights, options.pair) == ({"l1": 0.5}, (0.1, 1.0))


def test_a_name_registered_later_is_valid():
    terms = Registry("loss term")
    kind = msgspec.defstruct("Late", [("term", choice(terms), "none")])
    with pytest.raises(ConfigError, match="unknown loss term 'new'"):
        convert({"term": "new"}, kind)
    terms.register("new")(object())
    assert convert({"term": "new"}, kind).term == "new"


def test_files_extend_each_other(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: [1]}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\na: {c: [2]}\n")
    assert read_extended(tmp_path / "top.yaml") == {"a": {"b": 1, "c": [2]}}


def test_a_circular_extends_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: [a.yaml]\n")
    with pytest.raises(ConfigError, match=r"circular `extends`: a.yaml -> b.yaml -> a.yaml"):
        read_extended(tmp_path / "a.yaml")
