"""Announcements of what deviates from the settings that a checkpoint was trained with.

Apart from `checkpoint_settings`, which reads training recipes: prediction must not depend on the code of training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coordexp.answers.inference_settings import read_inference_settings
from coordexp.answers.render import PromptStyle
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.inference.options import PredictOptions

BUDGET = ("max_blocks", "min_blocks", "factor", "resize")


def resolve(command: str, name: str, given: Any, recorded: Any, default: Any) -> Any:
    """The value of one setting: `given`, else `recorded`, else `default` (each None if absent).

    Announces on stderr that `given` overrides another recorded value, and that a default is used.
    """
    if given is not None:
        if recorded is not None and given != recorded:
            announce(command, f"{name} {given!r} overrides {recorded!r}, which the checkpoint was trained with")
        return given
    if recorded is None:
        announce(command, f"{name} {default!r} is a default: the checkpoint does not record its own")
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
    if "poly" in options.geometry and options.poly_max_points < (recorded.poly_max_points or 0):
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


def announce(command: str, message: str) -> None:
    """Print a message of a command on stderr."""
    print(f"{command}: {message}", file=sys.stderr, flush=True)
