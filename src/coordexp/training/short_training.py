"""Refuses training data without objects, and warns of recipes that are too short for their data."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from coordexp.datasets.mixture import load_mixture
from coordexp.recipe import Recipe
from coordexp.records import COORD_BINS
from coordexp.runtime.errors import DataError, located

FEW_STEPS = 300
FEW_OCCURRENCES = 100  # of a coordinate token; the demo's tokens occur about 180 times each
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class _Object(msgspec.Struct, gc=False):
    bbox_2d: list[msgspec.Raw] | None = None
    poly: list[msgspec.Raw] | None = None


class _Record(msgspec.Struct, gc=False):
    objects: list[_Object] = []


class TrainingData(msgspec.Struct, frozen=True):
    """Number of images, and of coordinates in their answers."""

    images: int
    coordinates: int


def warnings(recipe: Recipe, data: TrainingData, world_size: int = 1) -> list[str]:
    """What is likely too little for the model to learn, one text each."""
    arguments = recipe.swift_arguments
    per_step = math.prod(int(arguments.get(name, 1)) for name in BATCH) * world_size
    steps = int(arguments.get("max_steps", -1))
    if steps <= 0:
        steps = math.ceil(data.images / per_step) * float(arguments.get("num_train_epochs", 1))
    epochs = steps * per_step / max(data.images, 1)
    occurrences = epochs * data.coordinates / COORD_BINS
    found = []
    if steps < FEW_STEPS:
        text = (
            f"training has only {steps:,.0f} optimizer steps ({per_step:,} images per step, {data.images:,} in total)"
        )
        found.append(f"{text}\n  -> raise training.num_train_epochs, or extend config/train/sft_small_data.yaml")
    if recipe.custom.coord_tokens.enabled and occurrences < FEW_OCCURRENCES:
        text = f"each coordinate token occurs {occurrences:,.0f} times on average in the whole training run"
        fix = "train more epochs, start from a base that has learned coordinate tokens (models: source: run)"
        found.append(f"{text}\n  -> {fix}, or use text integers (custom.coord_tokens.enabled: false)")
    return found


def training_data(recipe: Recipe) -> TrainingData:
    """Counts of the records file, or of all files of the mixture, that the recipe trains on.

    DataError if none of their records has an object: the model would only learn empty answers.
    """
    mixture = recipe.custom.fusion_config
    files = [s.jsonl for s in load_mixture(mixture).sources.values()] if mixture else [recipe.custom.train_jsonl]
    counts = [data_of(file) for file in files if file]
    data = TrainingData(sum(c.images for c in counts), sum(c.coordinates for c in counts))
    if counts and not data.coordinates:
        fix = "check the statistics of the conversion, and the split that is used for training (data.roles.train)"
        found = f"{data.images:,} images without objects"
        raise DataError(located("no object to train on", file=mixture or files[0], found=found, fix=fix))
    return data


def data_of(records_jsonl: str | Path) -> TrainingData:
    """Counts of a records file; lines that cannot be decoded are left to the reader of the records."""
    images = coordinates = 0
    decode = msgspec.json.Decoder(_Record).decode
    with Path(records_jsonl).open("rb") as lines:
        for line in lines:
            try:
                objects = decode(line).objects
            except msgspec.MsgspecError:
                continue
            images += 1
            coordinates += sum(len(obj.bbox_2d or obj.poly or ()) for obj in objects)
    return TrainingData(images, coordinates)
