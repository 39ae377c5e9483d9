"""A tiny checkpoint taught to answer a few images, and the records of these images; created once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference_helpers import SIZES, images, open_predictor, taught_checkpoint

from coordexp.answers.render import PromptStyle
from coordexp.inference.predictor import Predictor
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
