"""Warnings about recipes with too few steps, or coordinate tokens that hardly occur."""

import json
from pathlib import Path

import pytest

from coordexp.recipe import load_recipe
from coordexp.runtime.errors import DataError
from coordexp.training.short_training import TrainingData, data_of, training_data, warnings

RECIPES = Path(__file__).parents[3] / "config/train"
BCCD = TrainingData(205, 4 * 2_700)


def found(recipe, data, world_size=1, **overrides):
    return [text.split("\n")[0] for text in warnings(load_recipe(RECIPES / recipe, overrides), data, world_size)]


def test_one_epoch_of_205_images_is_too_little():
    steps, tokens = found("sft_coord_offset.yaml", BCCD)
    assert steps == "training has only 13 optimizer steps (16 images per step, 205 in total)"
    assert tokens.startswith("each coordinate token occurs 11 times on average")


@pytest.mark.parametrize(
    ("recipe", "data"),
    [
        ("sft_small_data.yaml", BCCD),
        ("sft_coord_offset.yaml", TrainingData(118_000, 4 * 860_000)),
        ("full_tiny.yaml", TrainingData(6_000, 4 * 9_000)),
    ],
)
def test_the_shipped_recipes_fit_the_data_that_they_are_for(recipe, data):
    assert found(recipe, data, 2) == []


def test_text_integers_need_no_coordinate_tokens():
    custom = {"coord_tokens": {"enabled": False, "skip_bbox_norm": False}, "coord_offset": {"enabled": False}}
    recipe = {"training": {"max_steps": 400, "optimizer": "multimodal"}, "custom": custom}
    assert found("sft_coord_offset.yaml", TrainingData(50, 4 * 50), **recipe) == []


def test_max_steps_takes_precedence_over_epochs():
    assert found("full_tiny.yaml", TrainingData(10**6, 4 * 10**7), training={"max_steps": 5})[0].startswith(
        "training has only 5 optimizer steps"
    )


def test_records_are_counted_whatever_their_geometry(tmp_path):
    rows = [
        {"objects": [{"bbox_2d": ["<|coord_1|>"] * 4}, {"poly": [1, 2, 3, 4, 5, 6]}]},
        {"objects": []},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    assert data_of(path) == TrainingData(2, 10)


@pytest.mark.parametrize("kind", ["file", "empty file", "mixture"])
def test_training_data_without_any_object_is_refused(tmp_path, kind):
    path = tmp_path / "train.jsonl"
    path.write_text('{"objects": []}\n' * (kind != "empty file"))
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(json.dumps({"sources": {"a": {"jsonl": "train.jsonl"}, "b": {"jsonl": "train.jsonl"}}}))
    custom = {"fusion_config": str(mixture)} if kind == "mixture" else {"train_jsonl": str(path)}
    recipe = load_recipe(RECIPES / "full_tiny.yaml", {"custom": custom})
    with pytest.raises(DataError, match=r"(?s)no object to train on.*data.roles.train"):
        training_data(recipe)
    path.write_text('{"objects": [{"bbox_2d": [1, 2, 3, 4]}]}\n')
    assert training_data(recipe).coordinates == (8 if kind == "mixture" else 4)
