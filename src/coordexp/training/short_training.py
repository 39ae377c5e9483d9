"""Warnings about recipes that are too short for their data: too few steps, or coordinate tokens that hardly occur."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from coordexp.recipe import Recipe
from coordexp.records import COORD_BINS

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
        text = f"training has only {steps:,.0f} optimizer steps of {per_step:,} images ({data.images:,} images)"
        found.append(f"{text}\n  -> raise training.num_train_epochs, or extend config/train/sft_small_data.yaml")
    if recipe.custom.coord_tokens.enabled and occurrences < FEW_OCCURRENCES:
        text = f"each coordinate token occurs {occurrences:,.0f} times on average over the whole training"
        fix = "train more epochs, start from a base that has learned coordinate tokens (models: source: run)"
        found.append(f"{text}\n  -> {fix}, or use text integers (custom.coord_tokens.enabled: false)")
    return found


def data_of(records_jsonl: str | Path) -> TrainingData:
    """Counts of a file of records; lines that cannot be decoded are left to the reader of the records."""
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
