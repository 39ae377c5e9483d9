"""The settings that a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings, read_inference_settings
from coordexp.datasets.image_provenance import provenance_of_records
from coordexp.inference.overrides import BUDGET, announce
from coordexp.recipe import Custom, checkpoint_custom
from coordexp.runtime.errors import CoordExpError


def settings_of(model_dir: str | Path, command: str) -> InferenceSettings:
    """The settings of a merged checkpoint; announces on stderr, as `command`, if they are incomplete.

    A checkpoint without `coordexp_inference.json` takes them from the recipe in its merge_manifest.json, and the image
    budget from the training records that the recipe names, if they still exist.
    """
    recorded = read_inference_settings(model_dir)
    if recorded is not None:
        return recorded
    custom = checkpoint_custom(model_dir)
    budget = _budget(custom)
    settings = InferenceSettings(
        **budget, emit_norm=custom.emit_norm, temperature=custom.loss.temperature, style=custom.style
    )
    if budget:
        source = f"the recipe in merge_manifest.json and the image budget of its training records: {_listed(budget)}"
    elif custom != Custom():
        source = "the recipe in merge_manifest.json; the image budget of training is unknown"
    else:
        source = "defaults, as it does not record how it was trained"
    announce(command, f"{model_dir} has no {FILE_NAME}; using {source}")
    return settings


def _budget(custom: Custom) -> dict[str, Any]:
    """Image budget and resize rule of the training records, empty if they cannot be found any more."""
    if not custom.train_jsonl:
        return {}
    try:
        made = next(iter(provenance_of_records(custom.train_jsonl)), None)
        budget = {name: made[name] for name in BUDGET if name in made} if made else {}
        msgspec.convert(budget, InferenceSettings)
    except (OSError, CoordExpError, msgspec.ValidationError):
        return {}
    return budget


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
