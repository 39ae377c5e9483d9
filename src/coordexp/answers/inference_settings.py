"""The settings of a checkpoint's training that inference must share: `coordexp_inference.json`.

`modeling.merge` writes the file into the merged checkpoint; `coordexp detect`, `parse` and `predict` read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from coordexp.answers.parsed_answer import Kind
from coordexp.answers.render import PromptStyle
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.resize import ResizeRule
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json

FILE_NAME = "coordexp_inference.json"
Tiles = Annotated[int, Meta(ge=1)]


class InferenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a checkpoint; None means that the training did not record them.

    max_blocks, min_blocks: largest and smallest number of tiles per image in the training records.
    factor: side of a tile in pixels.
    resize: rule by which the training images were resized.
    emit_norm: codec from coordinates to bins.
    geometry: kinds of geometry in the training answers.
    poly_max_points: most points of a polygon in the training records.
    temperature: divides the logits of the coordinate bins.
    style: how prompts and answers are written.

    Keys that this version does not know are ignored, so that it can read the file of a later one.
    """

    max_blocks: Tiles | None = None
    min_blocks: Tiles | None = None
    factor: Tiles | None = None
    resize: ResizeRule | None = None
    emit_norm: EmitNorm = "norm1000"
    geometry: Annotated[tuple[Kind, ...], Meta(min_length=1)] | None = None
    poly_max_points: Annotated[int, Meta(ge=3)] | None = None
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    style: PromptStyle = PromptStyle()


def read_inference_settings(folder: str | Path) -> InferenceSettings | None:
    """The settings in a checkpoint folder, None if it has no such file; DataError if the file is invalid."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        return msgspec.convert(read_json(path), InferenceSettings)
    except msgspec.ValidationError as error:
        fix = "merge the checkpoint again (rule merge), or remove the file to use defaults"
        raise DataError(located(f"invalid inference settings: {error}", file=path, fix=fix)) from error
