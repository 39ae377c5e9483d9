"""A taught tiny checkpoint and the records of the pictures that it knows, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from infer_helpers import SIZES, pictures, taught_checkpoint

from coordexp.contract import Metadata, Object, Record
from coordexp.io import write_jsonl
from coordexp.prompt import PromptStyle


@pytest.fixture(scope="session")
def taught() -> Path:
    return taught_checkpoint(PromptStyle())


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    """Pixel-space records of `pictures`, ids from 100 on; every second one holds a cat."""
    folder = tmp_path_factory.mktemp("records")
    rows = []
    for n, picture in enumerate(pictures()):
        picture.save(folder / f"{n}.png")
        objects = [Object("cat", 1, [0.1, 0.1, 0.5, 0.5], bbox_2d=[3, 3, 16, 16])] if n % 2 else []
        metadata = Metadata(image_id=100 + n, source_width=640, source_height=480)
        rows.append(Record([f"{n}.png"], *SIZES[n], "pixel", objects, metadata))
    write_jsonl(folder / "val.jsonl", rows)
    return folder / "val.jsonl"
