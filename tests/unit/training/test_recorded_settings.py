"""Settings that a training records for inference: image budget, geometry, codec and style."""

from __future__ import annotations

import msgspec
import pytest

from coordexp.answers.inference_settings import InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.losses.options import LossOptions
from coordexp.recipe import Custom
from coordexp.runtime.io import write_json, write_jsonl
from coordexp.training.recorded_settings import settings_of_training

BOX = {"desc": 'a "poly": sign', "bbox_2d": [1, 2, 3, 4]}


def write_source(folder, *objects, **budget):
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    made = {"dataset": "mine", "split": "train", "image_dirs": [], "max_blocks": 9, "min_blocks": 4, "factor": 32}
    write_json(images / ".images.json", {**made, "resize": "fill", **budget})
    write_jsonl(folder / "train.jsonl", [{"images": ["images/train/1.jpg"], "objects": list(objects)}])
    return str(folder / "train.jsonl")


def test_budget_codec_and_style_of_the_records(tmp_path):
    loss = msgspec.structs.replace(LossOptions(), temperature=1.5)
    options = {"emit_norm": "norm1000_legacy", "json_format": "compact", "loss": loss}
    found = settings_of_training(Custom(train_jsonl=write_source(tmp_path, BOX), **options))
    assert found == InferenceSettings(
        max_blocks=9,
        min_blocks=4,
        factor=32,
        resize="fill",
        emit_norm="norm1000_legacy",
        geometry=("bbox_2d",),
        temperature=1.5,
        style=PromptStyle(json_format="compact"),
    )


@pytest.mark.parametrize("points", [3, 7])
def test_points_of_the_largest_polygon(tmp_path, points):
    small, large = ({"desc": "a", "poly": [f"<|coord_{k}|>" for k in range(2 * n)]} for n in (3, points))
    found = settings_of_training(Custom(train_jsonl=write_source(tmp_path, BOX, large, small)))
    assert (found.geometry, found.poly_max_points) == (("bbox_2d", "poly"), points)


def test_a_mixture_has_the_largest_budget_of_its_sources(tmp_path):
    files = [write_source(tmp_path / "a", BOX), write_source(tmp_path / "b", BOX, max_blocks=40, resize="shrink")]
    write_json(
        tmp_path / "mix.json", {"sources": {name: {"jsonl": path} for name, path in zip("ab", files, strict=True)}}
    )
    found = settings_of_training(Custom(fusion_config=str(tmp_path / "mix.json")))
    assert (found.max_blocks, found.min_blocks, found.factor, found.resize) == (40, 4, 32, None)


def test_records_of_unknown_origin_leave_the_budget_open(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"images": ["1.jpg"], "objects": [BOX]}])
    found = settings_of_training(Custom(train_jsonl=str(tmp_path / "train.jsonl")))
    assert found.max_blocks is found.resize is found.factor is None
