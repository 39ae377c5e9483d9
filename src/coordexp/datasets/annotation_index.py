"""Annotation files in COCO or LVIS format, read image by image.

The file is never loaded into memory: ids, boxes and byte spans are kept in columns (about 70 bytes per annotation), and
images and segmentations are decoded only when they are needed.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordexp.datasets.annotation_file import Id, Int64, check_annotation_file, check_in_entries
from coordexp.datasets.annotation_writer import SkippedLine
from coordexp.datasets.json_spans import Elements, Mapper, find_elements, read_spans
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

Block = tuple[str, np.ndarray, np.ndarray]  # file, spans of elements, spans of their bulk (as in Elements)
Decode = Callable[[bytes], list[Any]]
_COLUMNS = (
    ("ids", (), np.int64),
    ("image_ids", (), np.int64),
    ("categories", (), np.int64),
    ("boxes", (4,), np.float64),
    ("crowd", (), bool),
)


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


class AnnotationColumns(msgspec.Struct):
    """Annotations grouped by image, in columns. Image i owns rows `offsets[i]:offsets[i + 1]`.

    ids: int64 or text [M]. categories: int64 [M]. boxes: float64 [M, 4], (x, y, width, height) in source pixels.
    crowd: bool [M]. spans: int64 [M, 2], the bytes of each element in the file. offsets: int64 [number of images + 1].
    """

    ids: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    spans: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray | slice, offsets: np.ndarray) -> AnnotationColumns:
        """The rows selected by `index`, with new `offsets`."""
        columns = (self.ids, self.categories, self.boxes, self.crowd, self.spans)
        return AnnotationColumns(*(column[index] for column in columns), offsets)

    @property
    def image_index(self) -> np.ndarray:
        """Index of the image of each row, int64 [M]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class AnnotationIndex(msgspec.Struct):
    """The contents of an annotation file: byte spans int64 [N, 2] of images and categories, and all annotations.

    invalid: (field, element) of what cannot be decoded, has an id that is already used, or belongs to no image.
    skipped: what a dataset format could not convert to this file (see `AnnotationWriter`).
    """

    path: str
    images: np.ndarray
    categories: np.ndarray
    annotations: AnnotationColumns
    invalid: list[tuple[str, InvalidElement]]
    skipped: list[SkippedLine]

    def __len__(self) -> int:
        return len(self.images)

    def annotations_of(self, low: int, high: int) -> AnnotationColumns:
        """The annotations of images low..high-1; their `offsets` start at 0."""
        offsets = self.annotations.offsets[low : high + 1]
        return self.annotations.take(slice(offsets[0], offsets[-1]), offsets - offsets[0])


class _Id(msgspec.Struct, gc=False):
    id: Id


class _Segmentation(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_decode_images = msgspec.json.Decoder(list[ImageEntry]).decode
_decode_ids = msgspec.json.Decoder(list[_Id]).decode
_decode_annotations = msgspec.json.Decoder(list[AnnotationEntry]).decode
_decode_segmentations = msgspec.json.Decoder(list[_Segmentation]).decode
_decode_skipped = msgspec.json.Decoder(list[SkippedLine]).decode


def build_index(path: str | Path, mapper: Mapper = map) -> AnnotationIndex:
    """Index an annotation file; `mapper` may be the `map` of a process pool.

    DataError if the file is not strict JSON in COCO format, or has no images. Elements that cannot be used are no
    errors here: they are listed in `invalid`, and the caller decides.
    """
    non_finite = check_annotation_file(path)
    elements = find_elements(path, ("images", "annotations", "categories", "skipped"), mapper)
    for name in ("images", "annotations"):
        if name not in elements:
            fix = "pass the path of a COCO or LVIS annotation file"
            raise DataError(located("the list is missing", file=path, field=name, fix=fix))
    if len(non_finite):
        elements = _expose(path, elements, non_finite)
    images = elements.pop("images")
    if not len(images.spans):
        fix = "check the path and the split: an empty dataset cannot be converted"
        raise DataError(located("the list is empty", file=path, field="images", fix=fix))
    image_ids = _concatenate_ids(mapper(_image_ids, _blocks(path, images)))
    repeated = _repeated(image_ids)
    invalid = [("images", InvalidElement(i, i, "duplicate image id")) for i in image_ids[repeated].tolist()]
    categories = elements["categories"].spans if "categories" in elements else np.zeros((0, 2), np.int64)
    columns = _read_columns(path, elements.pop("annotations"), mapper)
    invalid += [("annotations", element) for element in columns.pop("invalid")]
    annotations, not_grouped = _group_by_image(image_ids[~repeated], columns)
    skipped = _read_skipped(path, elements["skipped"].spans) if "skipped" in elements else []
    return AnnotationIndex(str(path), images.spans[~repeated], categories, annotations, invalid + not_grouped, skipped)


def _expose(path: str | Path, elements: dict[str, Elements], non_finite: np.ndarray) -> dict[str, Elements]:
    """The elements without the bulk that holds a non-finite number, so that decoding finds it; DataError elsewhere."""
    check_in_entries(path, non_finite, [found.spans for found in elements.values()])
    exposed = {}
    for name, found in elements.items():
        low, high = np.searchsorted(non_finite, found.bulk[:, 0]), np.searchsorted(non_finite, found.bulk[:, 1])
        exposed[name] = Elements(found.spans, found.bulk[low == high])
    return exposed


def read_images(fd: int, index: AnnotationIndex, low: int, high: int) -> list[ImageEntry | InvalidElement]:
    """Images low..high-1, from the open annotation file `fd`."""
    return decode_elements(read_spans(fd, index.images[low:high]), _decode_images)


def all_images(index: AnnotationIndex) -> Iterator[ImageEntry | InvalidElement]:
    """Every image of the file, decoded in blocks."""
    with Path(index.path).open("rb") as handle:
        for low in range(0, len(index), tuning.ELEMENTS_PER_BLOCK):
            yield from read_images(handle.fileno(), index, low, low + tuning.ELEMENTS_PER_BLOCK)


def read_segmentations(fd: int, annotations: AnnotationColumns) -> list[bytes]:
    """The `segmentation` of each annotation as JSON text, from the open annotation file `fd`."""
    elements = decode_elements(read_spans(fd, annotations.spans), _decode_segmentations)
    return [b"null" if isinstance(e, InvalidElement) else bytes(e.segmentation) for e in elements]


def decode_elements(elements: list[bytes], decode: Decode) -> list[Any]:
    """Decode all elements at once or, if that fails, one by one, with an InvalidElement for each failure.

    One by one, integral floats (`1.0`) are accepted as integers, as in pycocotools.
    """
    try:
        return decode(b"[" + b",".join(elements) + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        return [_decode_one(element, decode) for element in elements]


def _read_skipped(path: str | Path, spans: np.ndarray) -> list[SkippedLine]:
    with Path(path).open("rb") as handle:
        elements = decode_elements(read_spans(handle.fileno(), spans), _decode_skipped)
    return [element for element in elements if isinstance(element, SkippedLine)]


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


def _blocks(path: str | Path, elements: Elements) -> Iterator[Block]:
    """The elements in blocks of ELEMENTS_PER_BLOCK; one empty block if there are none."""
    spans, bulk = elements.spans, elements.bulk
    for i in range(0, max(len(spans), 1), tuning.ELEMENTS_PER_BLOCK):
        own = spans[i : i + tuning.ELEMENTS_PER_BLOCK]
        a, b = np.searchsorted(bulk[:, 0], [own[0, 0], own[-1, 1]]) if len(own) else (0, 0)
        yield str(path), own, bulk[a:b]


def _read_block(block: Block, decode: Decode) -> list[Any]:
    """Decode the elements of a block without their bulk, or one by one and complete if that fails."""
    path, spans, bulk = block
    if not len(spans):
        return []
    base, end = int(spans[0, 0]), int(spans[-1, 1])
    page = base - base % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as handle:
        data = memoryview(mmap.mmap(handle.fileno(), end - page, access=mmap.ACCESS_READ, offset=page))
    kept = np.concatenate([[base], bulk.ravel(), [end]]).reshape(-1, 2) - page
    gc.disable()  # thousands of small objects without cycles
    try:
        return decode(b"[" + b"".join([data[a:b] for a, b in kept.tolist()]) + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        return decode_elements([bytes(data[a:b]) for a, b in (spans - page).tolist()], decode)
    finally:
        gc.enable()


def _image_ids(block: Block) -> np.ndarray:
    """Ids of a block of images; an element without an id gets a unique one."""
    elements = _read_block(block, _decode_ids)
    starts = block[1][:, 0]
    return _id_array([f"? byte {a}" if e.id is None else e.id for e, a in zip(elements, starts, strict=True)])


def _read_columns(path: str | Path, elements: Elements, mapper: Mapper) -> dict[str, Any]:
    """Columns of the valid annotations in file order, by name, and the list `invalid` of the others.

    Blocks are copied to their position as they arrive, so the peak memory is that of the columns.
    """
    spans = elements.spans
    count, filled, seen = len(spans), 0, 0
    columns = {name: np.empty((count, *shape), kind) for name, shape, kind in _COLUMNS}
    valid, invalid = np.ones(count, bool), []
    for block, block_valid, block_invalid in mapper(_columns_of_block, _blocks(path, elements)):
        for name, values in block.items():
            if values.dtype.kind == "U" and columns[name].dtype.kind == "i":
                columns[name] = columns[name].astype(object)  # text of any length
            columns[name][filled : filled + len(values)] = values
        valid[seen : seen + len(block_valid)] = block_valid
        invalid += block_invalid
        filled, seen = filled + len(block["ids"]), seen + len(block_valid)
    if invalid:
        spans = spans[valid]
        columns = {name: column[:filled] for name, column in columns.items()}
    texts = {name: column.astype(str) for name, column in columns.items() if column.dtype.kind == "O"}
    return columns | texts | {"spans": spans, "invalid": invalid}


def _columns_of_block(block: Block) -> tuple[dict[str, np.ndarray], np.ndarray, list[InvalidElement]]:
    """(columns of the valid elements of a block, bool mask of the valid ones, the invalid ones)."""
    elements = _read_block(block, _decode_annotations)
    valid, invalid = np.ones(len(elements), bool), []
    if InvalidElement in set(map(type, elements)):
        valid = np.array([not isinstance(e, InvalidElement) for e in elements])
        invalid = [e for e in elements if isinstance(e, InvalidElement)]
        elements = [e for e in elements if not isinstance(e, InvalidElement)]
    count = len(elements)
    boxes = np.fromiter(itertools.chain.from_iterable(map(attrgetter("bbox"), elements)), np.float64, 4 * count)
    columns = {
        "ids": _id_array(list(map(attrgetter("id"), elements))),
        "image_ids": _id_array(list(map(attrgetter("image_id"), elements))),
        "categories": np.fromiter(map(attrgetter("category_id"), elements), np.int64, count),
        "boxes": boxes.reshape(-1, 4),
        "crowd": np.fromiter(map(attrgetter("iscrowd"), elements), bool, count),
    }
    return columns, valid, invalid


def _concatenate_ids(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    if any(p.dtype.kind != "i" for p in parts):
        parts = [p.astype(str) for p in parts]
    return np.concatenate(parts)


def _id_array(ids: list[int | str]) -> np.ndarray:
    """int64 if every id is an integer, else text (a file that mixes them has one id for 1 and "1")."""
    if set(map(type, ids)) <= {int}:
        return np.array(ids, dtype=np.int64)
    return np.array([str(i) for i in ids])


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Bool [N]: whether an id has occurred earlier in the array."""
    repeated = np.ones(len(ids), dtype=bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated


def _group_by_image(
    image_ids: np.ndarray, columns: dict[str, Any]
) -> tuple[AnnotationColumns, list[tuple[str, InvalidElement]]]:
    """Annotations grouped by image, in file order within each; and those of unknown images or with a repeated id.

    The arrays in `columns` are removed from it one by one, so that none is in memory twice for long.
    """
    ids, image_of = columns["ids"], columns.pop("image_ids")
    if image_ids.dtype.kind != image_of.dtype.kind:
        image_ids, image_of = image_ids.astype(str), image_of.astype(str)
    by_id = np.argsort(image_ids, kind="stable").astype(np.int32)
    sorted_ids = image_ids[by_id]
    position = np.minimum(np.searchsorted(sorted_ids, image_of), len(sorted_ids) - 1)
    orphan = sorted_ids[position] != image_of
    image = by_id[position]
    del position
    repeated = _repeated(ids)
    problems = [(i, "duplicate annotation id") for i in np.flatnonzero(repeated)]
    problems += [(i, f"image_id {image_of[i].item()!r} is not in images") for i in np.flatnonzero(orphan & ~repeated)]
    invalid = [("annotations", InvalidElement(ids[i].item(), image_of[i].item(), problem)) for i, problem in problems]
    image[orphan | repeated] = len(image_ids)  # sorted after all images, then cut off
    counts = np.bincount(image, minlength=len(image_ids))[: len(image_ids)]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    order = np.argsort(image, kind="stable")[: offsets[-1]]
    del ids, image_of, image
    names = ("ids", "categories", "boxes", "crowd", "spans")
    return AnnotationColumns(*(columns.pop(name)[order] for name in names), offsets), invalid
