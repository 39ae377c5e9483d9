"""The settings that a checkpoint was trained with, and announcements of what deviates from them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings, read_inference_settings
from coordexp.answers.render import PromptStyle
from coordexp.datasets.image_provenance import provenance_of_records
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.options import PredictOptions
from coordexp.recipe import Custom, checkpoint_custom
from coordexp.runtime.errors import CoordExpError

BUDGET = ("max_blocks", "min_blocks", "factor", "resize")


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
    _announce(command, f"{model_dir} has no {FILE_NAME}; using {source}")
    return settings


def resolve(command: str, name: str, given: Any, recorded: Any, default: Any) -> Any:
    """The value of one setting: `given`, else `recorded`, else `default` (each None if absent).

    Announces on stderr that `given` overrides another recorded value, and that a default is used.
    """
    if given is not None:
        if recorded is not None and given != recorded:
            _announce(command, f"{name} {given!r} overrides {recorded!r}, which the checkpoint was trained with")
        return given
    if recorded is None:
        _announce(command, f"{name} {default!r} is a default: the checkpoint does not record its own")
        return default
    return recorded


def announce_overrides(
    model_dir: str | Path,
    options: PredictOptions,
    style: PromptStyle,
    emit_norm: EmitNorm,
    provenance: Iterable[Mapping[str, Any]],
) -> None:
    """Announce on stderr where a prediction deviates from what the checkpoint records.

    provenance: how the images were made, from `image_provenance.provenance_of_records`.
    """
    recorded = read_inference_settings(model_dir)
    if recorded is None:
        return
    given = {"temperature": options.temperature, "geometry": options.geometry, "emit_norm": emit_norm}
    if "poly" in options.geometry:
        given["poly_max_points"] = options.poly_max_points
    pairs = [(name, value, getattr(recorded, name)) for name, value in given.items()]
    pairs += [
        (f"style.{name}", getattr(style, name), getattr(recorded.style, name)) for name in style.__struct_fields__
    ]
    for images in provenance:
        pairs += [(f"{name} of the images", images.get(name), getattr(recorded, name)) for name in BUDGET]
    for name, value, trained in dict.fromkeys(pairs):
        if value is not None and trained is not None:
            resolve("predict", name, value, trained, None)


def _budget(custom: Custom) -> dict[str, Any]:
    """Image budget and resize rule of the training records, empty if they cannot be found any more."""
    if not custom.train_jsonl:
        return {}
    try:
        provenance = provenance_of_records(custom.train_jsonl)
        made = next((images for images in provenance if images.get("split") == "train"), None)
        budget = {name: made[name] for name in BUDGET if name in made} if made else {}
        msgspec.convert(budget, InferenceSettings)
    except (OSError, CoordExpError, msgspec.ValidationError):
        return {}
    return budget


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _announce(command: str, message: str) -> None:
    print(f"{command}: {message}", file=sys.stderr, flush=True)
