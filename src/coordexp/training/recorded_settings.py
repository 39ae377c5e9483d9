"""The training settings that inference must share, written beside the weights for the merged checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.inference_settings import InferenceSettings
from coordexp.datasets.image_provenance import provenance_of_records
from coordexp.datasets.mixture import load_mixture
from coordexp.recipe import Custom
from coordexp.runtime.io import enumerate_lines

MIN_POINTS = 3  # of a polygon


class _Object(msgspec.Struct, gc=False):
    poly: list[Any] | None = None


class _Record(msgspec.Struct, gc=False):
    objects: list[_Object] = []


_decode = msgspec.json.Decoder(_Record).decode


def settings_of_training(custom: Custom) -> InferenceSettings:
    """Settings for inference after training with the recipe section `custom`, whose records exist.

    Of a mixture, the largest image budget counts; a setting in which the sources differ otherwise is None.
    """
    files = _training_files(custom)
    images = [provenance for file in files for provenance in provenance_of_records(file)]
    points = max(map(_most_points, files), default=0)
    return InferenceSettings(
        max_blocks=max(_values(images, "max_blocks"), default=None),
        min_blocks=min(_values(images, "min_blocks"), default=None),
        factor=_only(_values(images, "factor")),
        resize=_only(_values(images, "resize")),
        emit_norm=custom.emit_norm,
        geometry=("bbox_2d", "poly") if points else ("bbox_2d",),
        poly_max_points=max(points, MIN_POINTS) if points else None,
        temperature=custom.loss.temperature,
        style=custom.style,
    )


def _training_files(custom: Custom) -> list[Path]:
    if custom.fusion_config:
        return [Path(source.jsonl) for source in load_mixture(custom.fusion_config).sources.values()]
    return [Path(custom.train_jsonl)] if custom.train_jsonl else []


def _values(images: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [value for made in images if (value := made.get(name)) is not None]


def _only(values: Iterable[Any]) -> Any:
    """The one value that all have in common, or None."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _most_points(records_jsonl: Path) -> int:
    """Points of the largest polygon in a records file; 0 if there are only boxes."""
    most = 0
    for _, line in enumerate_lines(records_jsonl):
        if b'"poly"' in line:
            polygons = [obj.poly for obj in _decode(line).objects if obj.poly]
            most = max([most, *(len(poly) // 2 for poly in polygons)])
    return most
