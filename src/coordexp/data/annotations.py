"""Annotation files in COCO or LVIS layout, read picture by picture.

The file is never loaded whole: an index of byte spans (a few dozen bytes an annotation) leads to
the elements of each picture, which are decoded only when they are needed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordexp.data.scan import element_spans, read_spans
from coordexp.errors import DataError, located

BLOCK = 8192  # elements decoded at once while the index is built


class Image(msgspec.Struct):
    """One entry of `images`; sizes in pixels. LVIS names the file by `coco_url` alone."""

    id: int | str
    width: int
    height: int
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []

    @property
    def path(self) -> str:
        """`folder/file` of the URL, or the file name as it is; empty when the entry has neither."""
        if self.file_name:
            return self.file_name
        return "/".join(self.coco_url.split("/")[-2:]) if self.coco_url else ""


class Annotation(msgspec.Struct):
    """One entry of `annotations`; `bbox` is [x, y, width, height] in source pixels."""

    id: int | str
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: int = 0


class Broken(msgspec.Struct):
    """An element that could not be decoded: what is known of it, and why."""

    id: int | str | None
    image_id: int | str | None
    problem: str


class _Key(msgspec.Struct):
    id: int | str
    image_id: int | str | None = None


class Index(msgspec.Struct):
    """Spans of a file: images int64 [N, 2], annotations int64 [M, 2] grouped by picture.

    Picture i owns annotations `offsets[i]:offsets[i + 1]`. `lost` are elements that belong to no
    picture, as (field, element).
    """

    path: str
    images: np.ndarray
    annotations: np.ndarray
    offsets: np.ndarray
    lost: list[tuple[str, Broken]]

    def __len__(self) -> int:
        return len(self.images)


_decode_images = msgspec.json.Decoder(list[Image]).decode
_decode_annotations = msgspec.json.Decoder(list[Annotation]).decode
_decode_keys = msgspec.json.Decoder(list[_Key]).decode


def build_index(path: str | Path, mapper: Callable[..., Iterable[Any]] = map) -> Index:
    """Index of an annotation file; `mapper` may be a process pool's `imap`.

    DataError when the file is not in the layout or has no pictures. Duplicate ids and annotations
    of unknown pictures are not errors here: they are in `lost`, for the caller to judge.
    """
    spans = element_spans(path, ("images", "annotations"))
    for name in ("images", "annotations"):
        if name not in spans:
            fix = "give the path of a COCO or LVIS annotation file"
            raise DataError(located("this list is missing", file=path, field=name, fix=fix))
    if not len(spans["images"]):
        fix = "an empty data set cannot be converted: check the path and the split"
        raise DataError(located("the list is empty", file=path, field="images", fix=fix))
    image_ids, _, _ = _ids(path, spans["images"], mapper)
    ids, owners, unreadable = _ids(path, spans["annotations"], mapper)
    lost = [("annotations", broken) for broken in unreadable if broken.image_id is None]
    image_spans, image_ids, repeated = _first_of_each(spans["images"], image_ids)
    lost += [("images", Broken(i, i, "duplicate image id")) for i in repeated]
    annotation_spans, owners, repeated = _first_of_each(spans["annotations"], ids, owners)
    lost += [("annotations", Broken(i, None, "duplicate annotation id")) for i in repeated]
    grouped, offsets, orphans = _group(image_ids, annotation_spans, owners)
    fd = os.open(path, os.O_RDONLY)
    try:
        for element in decode_elements(read_spans(fd, orphans), _decode_annotations):
            if element.image_id is not None:
                owner = f"image_id {element.image_id!r} is not in images"
                lost.append(("annotations", Broken(element.id, element.image_id, owner)))
    finally:
        os.close(fd)
    return Index(str(path), image_spans, grouped, offsets, lost)


def read_pictures(
    fd: int, index: Index, low: int, high: int
) -> tuple[list[Image | Broken], list[list[Annotation | Broken]]]:
    """Pictures low..high-1 and the annotations of each, from the open annotation file `fd`."""
    images = decode_elements(read_spans(fd, index.images[low:high]), _decode_images)
    bounds = (index.offsets[low : high + 1] - index.offsets[low]).tolist()
    spans = index.annotations[index.offsets[low] : index.offsets[high]]
    flat = decode_elements(read_spans(fd, spans), _decode_annotations)
    return images, [flat[a:b] for a, b in itertools.pairwise(bounds)]


def decode_elements(elements: list[bytes], decode: Callable[[bytes], list[Any]]) -> list[Any]:
    """All elements at once; one by one, with a Broken for each bad one, if that fails."""
    try:
        return decode(b"[" + b",".join(elements) + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        return [_decode_one(element, decode) for element in elements]


def _decode_one(element: bytes, decode: Callable[[bytes], list[Any]]) -> Any:
    try:
        return decode(b"[" + element + b"]")[0]
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        problem = str(error).replace("$[0].", "").replace("$[0]", "element")
    try:
        known = json.loads(element)  # accepts NaN, so that the id can still be named
    except ValueError:
        known = {}
    if not isinstance(known, dict):
        known = {}
    ids = [v if isinstance(v := known.get(k), int | str) else None for k in ("id", "image_id")]
    return Broken(*ids, problem)


def _ids(path, spans: np.ndarray, mapper) -> tuple[np.ndarray, np.ndarray, list[Broken]]:
    """(ids [N], image ids [N], elements that do not decode)."""
    blocks = [(str(path), spans[i : i + BLOCK]) for i in range(0, len(spans), BLOCK)]
    parts = list(mapper(_block_ids, blocks))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), []
    ids, owners, broken = zip(*parts, strict=True)
    return _join(ids), _join(owners), [b for part in broken for b in part]


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    if any(p.dtype.kind != "i" for p in parts):
        parts = [p.astype(str) for p in parts]
    return np.concatenate(parts)


def _block_ids(block: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[Broken]]:
    path, spans = block
    fd = os.open(path, os.O_RDONLY)
    try:
        base, end = int(spans[0, 0]), int(spans[-1, 1])
        data = os.pread(fd, end - base, base)
    finally:
        os.close(fd)
    try:
        keys = _decode_keys(b"[" + data + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        keys = decode_elements([data[a - base : b - base] for a, b in spans.tolist()], _decode_keys)
    broken = [key for key in keys if isinstance(key, Broken)]
    ids = [f"?{base + i}" if key.id is None else key.id for i, key in enumerate(keys)]
    owners = ["?" if key.image_id is None else key.image_id for key in keys]
    return _id_array(ids), _id_array(owners), broken


def _id_array(ids: list[int | str]) -> np.ndarray:
    """int64 when every id is an integer, else text; text ids never equal integer ids."""
    if all(type(i) is int for i in ids):
        return np.array(ids, dtype=np.int64)
    return np.array([str(i) if type(i) is int else f"{i}" for i in ids])


def _first_of_each(spans: np.ndarray, ids: np.ndarray, owners: np.ndarray | None = None):
    """(spans, ids or owners, repeated ids): every id once, its first appearance, in file order."""
    _, first = np.unique(ids, return_index=True)
    labels = ids if owners is None else owners
    if len(first) == len(ids):
        return spans, labels, []
    kept = np.zeros(len(ids), dtype=bool)
    kept[first] = True
    return spans[kept], labels[kept], ids[~kept].tolist()


def _group(image_ids: np.ndarray, spans: np.ndarray, owners: np.ndarray):
    """(spans grouped by picture in file order, offsets [N + 1], spans whose picture is unknown)."""
    if image_ids.dtype.kind != owners.dtype.kind:
        image_ids, owners = image_ids.astype(str), owners.astype(str)
    by_id = np.argsort(image_ids, kind="stable")
    sorted_ids = image_ids[by_id]
    place = np.minimum(np.searchsorted(sorted_ids, owners), len(sorted_ids) - 1)
    known = sorted_ids[place] == owners
    picture = by_id[place[known]]
    order = np.argsort(picture, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(picture, minlength=len(image_ids)))])
    return spans[known][order], offsets, spans[~known]
