"""The index of an annotation file in COCO or LVIS format, to read it image by image.

Neither the file nor its index is held in memory. The index is on disk: the byte spans of all elements, and about 100
bytes per annotation. Images and segmentations are decoded when they are needed.
"""

from __future__ import annotations

import gc
import itertools
import mmap
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import (
    AnnotationEntry,
    Decode,
    ImageEntry,
    InvalidElement,
    decode_elements,
)
from coordexp.datasets.annotation_file import Id, check_annotation_file, check_in_entries
from coordexp.datasets.annotation_writer import SkippedLine
from coordexp.datasets.disk_arrays import (
    ArrayFile,
    KeyFile,
    blocks,
    find_rows,
    group_rows,
    keys_of,
    repeated_rows,
    same_kind,
    without_rows,
)
from coordexp.datasets.json_spans import Elements, Mapper, find_elements, read_spans, spans_between
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

Block = tuple[str, np.ndarray, np.ndarray]  # file, spans of elements, spans of their bulk (as in Elements)
Invalid = list[tuple[str, InvalidElement]]
Folder = str | Path | None
_ROW = np.dtype([("category", np.int64), ("box", np.float64, 4), ("crowd", bool), ("span", np.int64, 2)])


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

    rows: the annotations in file order, _ROW [M]; keys: their ids (see `KeyFile`). order: rows by image; image i owns
    `order[offsets[i]:offsets[i + 1]]`. These and `images` are on disk.
    invalid: (field, element) of what cannot be decoded, has an id that is already used, or belongs to no image.
    skipped: what a dataset format could not convert to this file (see `AnnotationWriter`).
    """

    path: str
    images: np.ndarray
    categories: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    invalid: Invalid
    skipped: list[SkippedLine]

    def __len__(self) -> int:
        return len(self.images)

    def annotations_of(self, low: int, high: int) -> AnnotationColumns:
        """The annotations of images low..high-1, in memory; their `offsets` start at 0."""
        offsets = self.offsets[low : high + 1]
        order = self.order[offsets[0] : offsets[-1]]
        rows = self.rows[order]
        ids = self.keys[order] if self.keys.dtype == np.int64 else _ids_as_text(self.path, rows["span"])
        columns = (np.ascontiguousarray(rows[name]) for name in ("category", "box", "crowd", "span"))
        return AnnotationColumns(ids, *columns, offsets - offsets[0])


class _Id(msgspec.Struct, gc=False):
    id: Id


class _Ids(msgspec.Struct, gc=False):
    id: Id
    image_id: Id


class _Segmentation(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_decode_images = msgspec.json.Decoder(list[ImageEntry]).decode
_decode_ids = msgspec.json.Decoder(list[_Id]).decode
_decode_both_ids = msgspec.json.Decoder(list[_Ids]).decode
_decode_annotations = msgspec.json.Decoder(list[AnnotationEntry]).decode
_decode_segmentations = msgspec.json.Decoder(list[_Segmentation]).decode
_decode_skipped = msgspec.json.Decoder(list[SkippedLine]).decode


def build_index(path: str | Path, mapper: Mapper = map, folder: Folder = None) -> AnnotationIndex:
    """Index an annotation file; `mapper` may be the `map` of a process pool.

    The index is kept in `folder`, by default that for temporary files, and disappears with the process.
    DataError if the file is not strict JSON in COCO format, or has no images. Elements that cannot be used are no
    errors here: they are listed in `invalid`, and the caller decides.
    """
    non_finite = check_annotation_file(path)
    elements = find_elements(path, ("images", "annotations", "categories", "skipped"), mapper, folder)
    for name in ("images", "annotations"):
        if name not in elements:
            fix = "pass the path of a COCO or LVIS annotation file"
            raise DataError(located("the list is missing", file=path, field=name, fix=fix))
    if len(non_finite):
        elements = _expose(path, elements, non_finite)
    if not len(elements["images"].spans):
        fix = "check the path and the split: an empty dataset cannot be converted"
        raise DataError(located("the list is empty", file=path, field="images", fix=fix))
    images, image_keys, invalid = _unique_images(path, elements["images"], mapper, folder)
    rows, keys, owners, invalid_rows = _read_rows(path, elements["annotations"], mapper, folder)
    order, offsets, not_grouped = _group_by_image(path, image_keys, rows, keys, owners, folder)
    categories = elements["categories"].spans if "categories" in elements else np.zeros((0, 2), np.int64)
    skipped = _read_skipped(path, elements["skipped"].spans) if "skipped" in elements else []
    invalid += invalid_rows + not_grouped
    return AnnotationIndex(str(path), images, categories, rows, keys, order, offsets, invalid, skipped)


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


def all_annotations(index: AnnotationIndex) -> Iterator[AnnotationColumns]:
    """The annotations of successive blocks of images."""
    for low in range(0, len(index), tuning.ELEMENTS_PER_BLOCK):
        yield index.annotations_of(low, low + tuning.ELEMENTS_PER_BLOCK)


def read_segmentations(fd: int, annotations: AnnotationColumns) -> list[bytes]:
    """The `segmentation` of each annotation as JSON text, from the open annotation file `fd`."""
    elements = decode_elements(read_spans(fd, annotations.spans), _decode_segmentations)
    return [b"null" if isinstance(e, InvalidElement) else bytes(e.segmentation) for e in elements]


def _read_skipped(path: str | Path, spans: np.ndarray) -> list[SkippedLine]:
    elements = _read_elements(path, spans, _decode_skipped)
    return [element for element in elements if isinstance(element, SkippedLine)]


def _ids_as_text(path: str | Path, spans: np.ndarray) -> np.ndarray:
    return np.array([str(element.id) for element in _read_elements(path, spans, _decode_ids)], dtype=str)


def _read_elements(path: str | Path, spans: np.ndarray, decode: Decode) -> list[Any]:
    with Path(path).open("rb") as handle:
        return decode_elements(read_spans(handle.fileno(), spans), decode)


def _blocks(path: str | Path, elements: Elements) -> Iterator[Block]:
    """The elements in blocks of ELEMENTS_PER_BLOCK."""
    for i in range(0, len(elements.spans), tuning.ELEMENTS_PER_BLOCK):
        own = elements.spans[i : i + tuning.ELEMENTS_PER_BLOCK]
        yield str(path), own, spans_between(elements.bulk, own[0, 0], own[-1, 1])


def _read_block(block: Block, decode: Decode) -> list[Any]:
    """Decode the elements of a block without their bulk, or one by one and complete if that fails."""
    path, spans, bulk = block
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


def _unique_images(
    path: str | Path, elements: Elements, mapper: Mapper, folder: Folder
) -> tuple[np.ndarray, np.ndarray, Invalid]:
    """(spans and keys of the images whose id no earlier one has, the others)."""
    file = KeyFile(folder)
    for block in mapper(_image_keys, _blocks(path, elements)):
        file.append(block)
    spans, keys = elements.spans, file.finish()
    repeated = repeated_rows(keys)
    ids = [element.id for element in _read_elements(path, spans[repeated], _decode_ids)]
    if keys.dtype != np.int64:
        ids = [str(i) for i in ids]
    invalid = [("images", InvalidElement(i, i, "duplicate image id")) for i in ids]
    return without_rows(spans, repeated, folder), without_rows(keys, repeated, folder), invalid


def _image_keys(block: Block) -> np.ndarray:
    """Keys of the ids of a block of images; an element without an id gets a unique one."""
    elements = _read_block(block, _decode_ids)
    starts = block[1][:, 0]
    return keys_of([f"? byte {a}" if e.id is None else e.id for e, a in zip(elements, starts, strict=True)])


def _read_rows(
    path: str | Path, elements: Elements, mapper: Mapper, folder: Folder
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Invalid]:
    """The valid annotations in file order: (rows, keys of their ids, keys of their image ids, the invalid ones)."""
    rows, keys, owners, invalid = ArrayFile(_ROW, folder=folder), KeyFile(folder), KeyFile(folder), []
    for own_rows, own_keys, own_owners, own_invalid in mapper(_rows_of_block, _blocks(path, elements)):
        rows.append(own_rows)
        keys.append(own_keys)
        owners.append(own_owners)
        invalid += [("annotations", element) for element in own_invalid]
    return rows.finish(), keys.finish(), owners.finish(), invalid


def _rows_of_block(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[InvalidElement]]:
    """As `_read_rows`, of one block."""
    elements, spans, invalid = _read_block(block, _decode_annotations), block[1], []
    if InvalidElement in set(map(type, elements)):
        invalid = [e for e in elements if isinstance(e, InvalidElement)]
        spans = spans[[not isinstance(e, InvalidElement) for e in elements]]
        elements = [e for e in elements if not isinstance(e, InvalidElement)]
    count = len(elements)
    rows = np.empty(count, _ROW)
    rows["category"] = np.fromiter(map(attrgetter("category_id"), elements), np.int64, count)
    boxes = itertools.chain.from_iterable(map(attrgetter("bbox"), elements))
    rows["box"] = np.fromiter(boxes, np.float64, 4 * count).reshape(-1, 4)
    rows["crowd"] = np.fromiter(map(attrgetter("iscrowd"), elements), bool, count)
    rows["span"] = spans
    keys, owners = (keys_of(list(map(attrgetter(name), elements))) for name in ("id", "image_id"))
    return rows, keys, owners, invalid


def _group_by_image(
    path: str | Path,
    image_keys: np.ndarray,
    rows: np.ndarray,
    keys: np.ndarray,
    owners: np.ndarray,
    folder: Folder,
) -> tuple[np.ndarray, np.ndarray, Invalid]:
    """(rows by image, in file order within each; bounds of the images; those of unknown images or with a repeated id).

    Arguments as returned by `_unique_images` and `_read_rows`.
    """
    image_keys, owners = same_kind(image_keys, owners, folder)
    image = find_rows(image_keys, owners, folder)
    orphans = np.concatenate([low + np.flatnonzero(block < 0) for low, block in blocks(image)] or [[]]).astype(np.int64)
    repeated = repeated_rows(keys)
    image[repeated] = -1
    problem_rows = [*repeated.tolist(), *np.setdiff1d(orphans, repeated).tolist()]
    invalid: Invalid = []
    for n, ids in enumerate(_read_elements(path, rows["span"][problem_rows], _decode_both_ids)):
        own = ids.id if keys.dtype == np.int64 else str(ids.id)
        owner = ids.image_id if owners.dtype == np.int64 else str(ids.image_id)
        problem = "duplicate annotation id" if n < len(repeated) else f"image_id {owner!r} is not in images"
        invalid.append(("annotations", InvalidElement(own, owner, problem)))
    return *group_rows(image, len(image_keys), folder), invalid
