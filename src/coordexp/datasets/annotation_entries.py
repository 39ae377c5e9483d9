"""Entries of annotation files in COCO or LVIS format: their types, and decoding that keeps invalid ones apart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import msgspec

from coordexp.datasets.annotation_file import Id, Int64

Decode = Callable[[bytes], list[Any]]


class PhraseEntry(msgspec.Struct):
    """A phrase about an image, and the ids of all annotations of the image that it describes."""

    text: str
    annotation_ids: list[Id]


class ImageEntry(msgspec.Struct):
    """One entry of `images`; sizes are in pixels. LVIS names the file by `coco_url` only, and has the two lists.

    phrases: an extension of COCO's format, which the formats with phrases write.
    """

    id: Id
    width: Int64
    height: Int64
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[Int64] | None = None
    not_exhaustive_category_ids: list[Int64] | None = None
    phrases: list[PhraseEntry] | None = None

    @property
    def path(self) -> str:
        """The file name, or `folder/file` from the URL; empty if the entry has neither."""
        if self.file_name:
            return self.file_name
        return "/".join(self.coco_url.split("/")[-2:]) if self.coco_url else ""


class AnnotationEntry(msgspec.Struct, gc=False):
    """One entry of `annotations` without its segmentation; `bbox` is [x, y, width, height] in source pixels.

    `area` is in square pixels, and used by the evaluation only.
    """

    id: Id
    image_id: Id
    category_id: Int64
    bbox: tuple[float, float, float, float]
    iscrowd: bool | Int64 = 0
    area: float | None = None


class InvalidElement(msgspec.Struct):
    """An element that cannot be used: the ids that are known, and the problem."""

    id: int | str | None
    image_id: int | str | None
    problem: str


def decode_elements(elements: list[bytes], decode: Decode) -> list[Any]:
    """Decode all elements at once or, if that fails, one by one, with an InvalidElement for each failure.

    One by one, integral floats (`1.0`) are accepted as integers, as in pycocotools.
    """
    try:
        return decode(b"[" + b",".join(elements) + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        return [_decode_one(element, decode) for element in elements]


def _decode_one(element: bytes, decode: Decode) -> Any:
    try:
        return decode(b"[" + element + b"]")[0]
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        problem = str(error).replace("$[0].", "").replace("$[0]", "element")
    try:
        known = json.loads(element)  # accepts NaN, so that the error can name the id
    except (ValueError, RecursionError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    with contextlib.suppress(ValueError, msgspec.ValidationError, msgspec.DecodeError):
        return decode(json.dumps([_with_integers(known)], allow_nan=False).encode())[0]
    return InvalidElement(_shown_id(known.get("id")), _shown_id(known.get("image_id")), problem)


def _shown_id(value: Any) -> int | str | None:
    """The id of an invalid element; text if it is an integer of more than 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return value if isinstance(value, int | str) else None


def _with_integers(element: dict[str, Any]) -> dict[str, Any]:
    """The element with integral floats, also those in its lists, converted to integers."""

    def integer(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return {
        k: [integer(v) for v in value] if isinstance(value, list) else integer(value) for k, value in element.items()
    }
