"""Loss options: weights completed from the registry, unknown terms refused, warm-up of the box terms."""

import subprocess
import sys

import msgspec
import pytest

from coordexp.losses.options import GeometryWarmup, LossOptions
from coordexp.losses.terms import LOSS_TERMS, loss_term
from coordexp.runtime.config_io import convert
from coordexp.runtime.errors import ConfigError


def test_weights_are_completed_with_the_defaults_of_the_registry():
    assert LossOptions().weights == {"text": 1.0, "ce": 1.0, "coord_mass": 1.0}
    assert LossOptions(weights={"giou": 0.5, "ce": 0, "l1": 0}).weights == {
        "text": 1.0,
        "ce": 0.0,
        "coord_mass": 1.0,
        "giou": 0.5,
    }


def test_resolved_options_survive_a_round_trip():
    options = LossOptions(weights={"giou": 0.5, "ce": 0}, geometry_warmup=GeometryWarmup(end=0.5))
    assert convert(msgspec.to_builtins(options), LossOptions) == options


def test_an_unknown_term_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"weights\.gioo: unknown loss term 'gioo', did you mean 'giou'"):
        convert({"weights": {"gioo": 1}}, LossOptions)
    with pytest.raises(ValueError, match="unknown loss term 'gioo', did you mean 'giou'"):
        LossOptions(weights={"gioo": 1})


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match=r"weights\.l1"):
        convert({"weights": {"l1": -1}}, LossOptions)


def test_a_registered_term_is_a_valid_weight(monkeypatch):
    monkeypatch.setattr(LOSS_TERMS, "_items", dict(LOSS_TERMS._items))
    loss_term("smooth_l1", level="box")(lambda predicted, target: predicted)
    options = convert({"weights": {"smooth_l1": 0.3}}, LossOptions)
    assert options.weights["smooth_l1"] == 0.3 and options.uses("box")
    assert not LossOptions().uses("box")


def test_the_warmup_factor_rises_linearly():
    warmup = GeometryWarmup(start=0.2, end=0.6)
    assert [warmup.factor(p) for p in (0, 0.2, 0.6, 1)] == [0, 0, 1, 1]
    assert warmup.factor(0.4) == pytest.approx(0.5)
    assert GeometryWarmup().factor(0) == 1


def test_options_are_read_without_torch():
    code = "import sys, coordexp.losses.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
