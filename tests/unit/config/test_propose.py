"""The proposed configuration: a budget from the images and their boxes, a recipe from their number, valid sections."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from coordexp.config import propose
from coordexp.config.settings import Settings, over_defaults
from coordexp.datasets.inspect_folder import SplitFacts

REPOSITORY = Path(__file__).resolve().parents[3]


def facts(split, images, *, size=(640, 480), box=80, per_image=4):
    sizes = np.tile(size, (images, 1))
    boxes = np.full(images * per_image, float(box))
    fractions = boxes / np.sqrt(size[0] * size[1])
    return SplitFacts(split, sizes, np.full(images, per_image), boxes, fractions, Counter(cell=images * per_image))


@pytest.mark.parametrize(
    ("split", "tiny", "tiles"),
    [
        (facts("train", 3), False, 320),
        (facts("train", 3, size=(96, 96), box=40), False, 256),
        (facts("train", 3, size=(96, 96), box=40), True, 9),
        (facts("train", 3, size=(4000, 3000), box=400), False, 1024),
        (facts("train", 3, box=10), False, 800),
        (facts("train", 3, box=1), False, 1024),
        (facts("train", 0), False, 256),
    ],
)
def test_the_budget_follows_the_images_and_their_small_boxes(split, tiny, tiles):
    assert propose.budget([split], tiny=tiny).max_blocks == tiles


@pytest.mark.parametrize("images", [12, 205, 1_000, 5_000, 15_000])
def test_a_small_set_is_trained_for_more_epochs(images):
    recipe = propose.recipe(images, "Qwen3-VL-4B-Instruct")
    kind = "small" if images < propose.SMALL else "medium"
    steps = recipe["training"]["num_train_epochs"] * images / propose.IMAGES_PER_STEP[kind]
    assert steps >= propose.STEPS[kind] * 0.9 or recipe["training"]["num_train_epochs"] == propose.MOST_EPOCHS[kind]


@pytest.mark.parametrize("model", ["Qwen3-VL-4B-Instruct", "tiny"])
@pytest.mark.parametrize("names", [("train",), ("train", "val", "test"), ("train", "test"), ("val",)])
def test_the_proposal_is_a_valid_configuration(names, model, tmp_path):
    splits = [facts(name, 205, per_image=300) for name in names]
    entry = {
        "format": "coco",
        "root": str(tmp_path),
        "annotations": dict.fromkeys(names, "a.json"),
        "image_dirs": {name: ["."] for name in names},
    }
    text = propose.as_yaml(propose.configuration("parts", entry, splits, model))
    settings = Settings.load(over_defaults(yaml.safe_load(text), REPOSITORY), REPOSITORY)
    tiles = propose.budget(splits, tiny=model == "tiny").max_blocks
    run = settings.run(f"parts_{tiles}")
    assert run.predict.restrict_labels and run.predict.max_new_tokens > 4096
    assert settings.recipe(run.name).template["max_length"] > tiles + 300 * propose.TOKENS_PER_BOX
    if "train" in names:
        assert settings.source("parts", "val")
    if "test" in names:
        test = settings.run("parts_test")
        assert (test.checkpoint, settings.evaluated_split("parts_test")) == (run.name, "test")
        assert propose.targets("parts", splits, tiles)[1] == "results/parts_test/report.html"
