"""Decoding modes against slow, obvious versions; a mode that a plug-in registers; the options of coordinates."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import msgspec
import pytest
import torch

from coordexp.inference.coordinates import DECODERS, CoordinateOptions, decode_slots
from coordexp.inference.options import PredictOptions
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.plugins import load_plugins

MEDIAN = """
from coordexp.inference.coordinates import DECODERS

@DECODERS.register("median")
def median(probs, mode, options):
    return (probs.cumsum(-1) < 0.5).sum(-1).to(probs.dtype)
"""


def random_slots(count: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with a few peaks, and random ranges of allowed bins."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 1000, generator=generator)
    peaks = torch.randint(0, 1000, (count, 3), generator=generator)
    logits.scatter_add_(1, peaks, 8 * torch.rand(count, 3, generator=generator))
    low = torch.randint(0, 400, (count,), generator=generator)
    high = torch.randint(500, 1000, (count,), generator=generator)
    return logits, low, high


def slow_values(logits: list[float], low: int, high: int, temperature: float, radius: int) -> dict[str, float]:
    """Every number of one slot, in Python floats."""
    weights = {k: math.exp(logits[k] / temperature) for k in range(low, high + 1)}
    total = sum(weights.values())
    probs = {k: weight / total for k, weight in weights.items()}
    mode = max(probs, key=probs.get)
    near = {k: p for k, p in probs.items() if abs(k - mode) <= radius}
    mean = sum(k * p for k, p in probs.items())
    return {
        "argmax": mode,
        "expectation": mean,
        "local": sum(k * p for k, p in near.items()) / sum(near.values()),
        "spread": math.sqrt(sum(p * (k - mean) ** 2 for k, p in probs.items())),
        "logprob": math.log(probs[mode]),
        "mass": sum(near.values()),
    }


@pytest.mark.parametrize("decode", ["argmax", "expectation", "local"])
@pytest.mark.parametrize(("temperature", "radius"), [(1.0, 16), (0.5, 0), (2.0, 999)])
def test_decoding_equals_the_slow_version(decode, temperature, radius):
    logits, low, high = random_slots()
    options = CoordinateOptions(decode=decode, temperature=temperature, local_radius=radius)
    for n, decoded in enumerate(decode_slots(logits, low, high, options)):
        slow = slow_values(logits[n].tolist(), int(low[n]), int(high[n]), temperature, radius)
        assert decoded.bin == slow["argmax"]
        assert decoded.value == pytest.approx(slow[decode], abs=2e-3)
        assert decoded.spread == pytest.approx(slow["spread"], rel=1e-4)
        assert decoded.logprob == pytest.approx(slow["logprob"], abs=1e-4)
        assert decoded.mass == pytest.approx(slow["mass"], abs=1e-4)


def test_two_peaks_and_a_bin_that_is_not_allowed():
    logits = torch.full((3, 1000), -30.0)
    logits[0, [100, 900]] = torch.tensor([2.0, 1.9])  # two humps
    logits[1, 499:502] = torch.tensor([1.0, 2.0, 1.0])
    logits[2, 10] = 5.0
    low, high = torch.tensor([0, 0, 20]), torch.tensor([999, 999, 999])
    mode = [s.value for s in decode_slots(logits, low, high, CoordinateOptions(decode="argmax"))]
    mean = [s.value for s in decode_slots(logits, low, high, CoordinateOptions(decode="expectation"))]
    near = decode_slots(logits, low, high, CoordinateOptions(decode="local"))
    assert mode[:2] == [100, 500] and mode[2] >= 20
    assert 400 < mean[0] < 600 and mean[1] == pytest.approx(500, abs=1e-2)
    assert near[0].value == pytest.approx(100, abs=1e-2) and near[0].mass == pytest.approx(0.525, abs=1e-2)
    assert near[0].spread > 300 and near[1].spread < 1
    assert near[2].bin >= 20


def test_a_plugin_adds_a_decoding_mode(tmp_path):
    (tmp_path / "median_mode.py").write_text(MEDIAN)
    load_plugins([tmp_path / "median_mode.py"])
    try:
        logits, low, high = random_slots()
        options = PredictOptions(decode="median")
        for n, decoded in enumerate(decode_slots(logits, low, high, options)):
            probs = logits[n, low[n] : high[n] + 1].double().softmax(-1)
            draws = sorted(random.Random(n).choices(range(int(low[n]), int(high[n]) + 1), probs.tolist(), k=20001))
            below, above = (draws[round(len(draws) * share)] for share in (0.48, 0.52))
            assert below <= decoded.value <= above
    finally:
        DECODERS._items.pop("median")


def test_an_unknown_mode_is_an_error_with_the_nearest_name():
    logits, low, high = random_slots(1)
    with pytest.raises(ConfigError, match="unknown decoding mode 'locale', did you mean 'local'"):
        decode_slots(logits, low, high, CoordinateOptions(decode="locale"))


def test_options_state_their_bounds_and_descriptions():
    for field in msgspec.inspect.type_info(PredictOptions).fields:
        assert field.type.extra_json_schema["description"], field.name
    for wrong in ({"temperature": 0}, {"local_radius": -1}, {"batch_size": 0}, {"duplicate_iou": 1.5}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, PredictOptions)


def test_options_are_read_without_loading_torch():
    code = "import sys, coordexp.inference.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
