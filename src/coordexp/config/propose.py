"""Proposes a configuration for the user's dataset: budget, recipe and runs that fit its size (`coordexp init`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import yaml

from coordexp.datasets.inspect_folder import SplitFacts

FACTOR = 32  # pixels of a tile
LEAST, MOST, TINY_MOST = 256, 1024, 64  # tiles
VISIBLE = 16  # pixels that a small box should have in the resized image
IMAGES_PER_STEP = {"small": 4, "medium": 16}  # of the recipes
SMALL, MEDIUM = 2_000, 20_000  # training images
STEPS = {"small": 1_500, "medium": 3_000}
MOST_EPOCHS = {"small": 100, "medium": 12}
CLOSED_SET = 200  # with at most this many categories, answers are restricted to their names
TOKENS_PER_BOX = 20  # upper estimate
ANSWER_TOKENS, MAX_LENGTH = 4096, {"tiny": 2048, "other": 16384}  # of the defaults and the recipes
VAL_FRACTION = 0.15


class Budget(NamedTuple):
    """Tiles per image, and the reason in words."""

    max_blocks: int
    reason: str


def budget(splits: list[SplitFacts], *, tiny: bool = False) -> Budget:
    """As many tiles as the images have, more if their small boxes would otherwise have few pixels."""
    sizes = np.concatenate([facts.sizes for facts in splits])
    areas = sizes[(sizes > 0).all(axis=1)].prod(axis=1)
    if not len(areas):
        return Budget(TINY_MOST if tiny else LEAST, "no image size is known")
    native = math.ceil(float(np.quantile(areas, 0.9)) / FACTOR**2)
    fractions = np.concatenate([facts.fractions for facts in splits])
    small = float(np.quantile(fractions, 0.05)) if len(fractions) else 1.0
    wanted = math.ceil((VISIBLE / max(small, 1e-6) / FACTOR) ** 2)  # tiles at which a small box is VISIBLE pixels wide
    low, high = (4, TINY_MOST) if tiny else (LEAST, MOST)
    tiles = min(max(native, min(wanted, 4 * native), low), high)
    step = 1 if tiny else FACTOR
    tiles = math.ceil(tiles / step) * step
    pixels = small * math.sqrt(tiles) * FACTOR
    reason = f"images have up to {native:,} tiles of {FACTOR} x {FACTOR} pixels (90th percentile); with {tiles:,}, "
    return Budget(tiles, f"{reason}one in twenty boxes is below {pixels:.0f} pixels")


def recipe(images: int, model: str) -> dict[str, Any]:
    """An inline recipe for this many training images: enough steps for a small set, few epochs for a large one."""
    if model == "tiny":
        return {"extends": "config/train/full_tiny.yaml"}
    kind = "small" if images < SMALL else "medium" if images < MEDIUM else None
    if kind is None:
        return {"extends": "config/train/sft_coord_offset.yaml"}
    epochs = math.ceil(STEPS[kind] * IMAGES_PER_STEP[kind] / max(images, 1))
    file = "sft_small_data" if kind == "small" else "sft_coord_offset"
    epochs = min(max(epochs, 2), MOST_EPOCHS[kind])
    return {"extends": f"config/train/{file}.yaml", "training": {"num_train_epochs": epochs}}


def configuration(name: str, entry: Mapping[str, Any], splits: list[SplitFacts], model: str) -> dict[str, Any]:
    """The sections `datasets` and `runs` for a dataset: a run that is selected on val, and one that reports on test."""
    by_name = {facts.split: facts for facts in splits}
    entry = dict(entry)
    derivable = "derived_splits" in entry or "root" in entry
    if "val" not in by_name and "train" in by_name and derivable:
        entry["derived_splits"] = {"val": {"source": "train", "fraction": VAL_FRACTION, "seed": 17}}
    train = by_name.get("train", splits[0])
    tiles = budget(splits, tiny=model == "tiny").max_blocks
    longest = max((int(facts.boxes_of.max(initial=0)) for facts in splits), default=0) * TOKENS_PER_BOX
    run: dict[str, Any] = {"model": model, "recipe": recipe(len(train.sizes), model)}
    limit = MAX_LENGTH["tiny" if model == "tiny" else "other"]
    if tiles + longest + 256 > limit:
        run["recipe"]["template"] = {"max_length": math.ceil((tiles + longest + 256) / 1024) * 1024}
    predict: dict[str, Any] = {}
    if longest > ANSWER_TOKENS:
        predict["max_new_tokens"] = math.ceil(longest / 1024) * 1024
    if len(train.categories) <= CLOSED_SET:
        predict["restrict_labels"] = True
    if predict:
        run["predict"] = predict
    runs = {name: run}
    if "test" in by_name:
        runs[f"{name}_test"] = {"checkpoint_from": f"{name}_{tiles}", "predict": {"split": "test"}}
    return {"datasets": {name: entry}, "runs": runs}


def targets(name: str, splits: list[SplitFacts], tiles: int) -> list[str]:
    """What to ask Snakemake for: the evaluation on val, and the one on test."""
    test = any(facts.split == "test" for facts in splits)
    return [f"results/{name}_{tiles}/report.html", *([f"results/{name}_test/report.html"] if test else [])]


def as_yaml(sections: Mapping[str, Any]) -> str:
    """The sections as YAML, with short lists and maps on one line."""
    return yaml.safe_dump(dict(sections), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
