"""A tiny checkpoint taught to answer a few images, and the records of these images; created once per session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from inference_helpers import SIZES, images, open_predictor, taught_checkpoint

from coordexp.answers.formats import FORMATS as ANSWER_FORMATS
from coordexp.answers.render import PromptStyle
from coordexp.datasets.formats import FORMATS
from coordexp.evaluation.metrics import METRICS
from coordexp.inference.coordinates import DECODERS
from coordexp.inference.predictor import Predictor
from coordexp.losses.terms import LOSS_TERMS
from coordexp.modeling.families import FAMILIES
from coordexp.records import Metadata, Object, Record
from coordexp.runtime.io import write_jsonl


@pytest.fixture(scope="session")
def taught() -> Path:
    return taught_checkpoint(PromptStyle())


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """A predictor of boxes and polygons; tests must not change its model."""
    return open_predictor()


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    """Pixel-space records of `images`, ids from 100 on; every second one contains a cat."""
    folder = tmp_path_factory.mktemp("records")
    rows = []
    for n, image in enumerate(images()):
        image.save(folder / f"{n}.png")
        objects = [Object("cat", 1, [0.1, 0.1, 0.5, 0.5], bbox_2d=[3, 3, 16, 16])] if n % 2 else []
        metadata = Metadata(image_id=100 + n, source_width=640, source_height=480)
        rows.append(Record([f"{n}.png"], *SIZES[n], "pixel", objects, metadata))
    write_jsonl(folder / "val.jsonl", rows)
    return folder / "val.jsonl"


REGISTRIES = (ANSWER_FORMATS, DECODERS, FAMILIES, FORMATS, LOSS_TERMS, METRICS)


@pytest.fixture(autouse=True)
def unchanged_registries():
    """Remove what the plug-ins of a test have registered."""
    modules, items = set(sys.modules), [dict(registry._items) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, items, strict=True):
        if registry._items != before:
            registry._items = before
    for name in set(sys.modules) - modules:
        if name.startswith("coordexp_plugin_"):
            del sys.modules[name]
