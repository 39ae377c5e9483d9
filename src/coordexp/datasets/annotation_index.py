"""Annotation files in COCO or LVIS format, read image by image.

The file is never loaded whole: ids, boxes and byte spans are kept in columns (some 70 bytes an
annotation); images and outlines are decoded only when they are needed.
"""

from __future__ import annotations

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

from coordexp.datasets.json_spans import Elements, Mapper, find_elements, read_spans
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

Block = tuple[str, np.ndarray, np.ndarray]  # file, and spans of elements and of their bulk, as in Elements
Decode = Callable[[bytes], list[Any]]
_COLUMNS = (
    ("ids", (), np.int64),
    ("owners", (), np.int64),
    ("categories", (), np.int64),
    ("boxes", (4,), np.float64),
    ("crowd", (), bool),
)


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


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations` without its outline; `bbox` is [x, y, width, height] in source pixels."""

    id: int | str
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class Broken(msgspec.Struct):
    """An element that could not be decoded: what is known of it, and why."""

    id: int | str | None
    image_id: int | str | None
    problem: str


class Rows(msgspec.Struct):
    """Annotations in columns. Image i owns rows `offsets[i]:offsets[i + 1]`.

    ids int64 or text [M]; categories int64 [M]; boxes float64 [M, 4] as (x, y, width, height) in
    source pixels; crowd bool [M]; spans int64 [M, 2], the bytes of each element in the file.
    """

    ids: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    spans: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray | slice, offsets: np.ndarray) -> Rows:
        """The rows of `index`, owned by images as `offsets` says."""
        columns = (self.ids, self.categories, self.boxes, self.crowd, self.spans)
        return Rows(*(column[index] for column in columns), offsets)

    @property
    def owner(self) -> np.ndarray:
        """Position of the image of each row, int64 [M]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class Index(msgspec.Struct):
    """A file's contents: spans of images and categories int64 [N, 2], and all annotations, grouped by image.

    `lost` are elements that belong to no image or cannot be read, as (field, element).
    """

    path: str
    images: np.ndarray
    categories: np.ndarray
    rows: Rows
    lost: list[tuple[str, Broken]]

    def __len__(self) -> int:
        return len(self.images)


class _Id(msgspec.Struct, gc=False):
    id: int | str


class _Outline(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


_decode_images = msgspec.json.Decoder(list[Image]).decode
_decode_ids = msgspec.json.Decoder(list[_Id]).decode
_decode_annotations = msgspec.json.Decoder(list[Annotation]).decode
_decode_outlines = msgspec.json.Decoder(list[_Outline]).decode


def build_index(path: str | Path, mapper: Mapper = map) -> Index:
    """Index of an annotation file; `mapper` may be a process pool's `imap`.

    DataError when the file is not in the format or has no images. Duplicate ids, annotations of
    unknown images and broken ones are not errors here: they are in `lost`, for the caller to judge.
    """
    elements = find_elements(path, ("images", "annotations", "categories"), mapper)
    for name in ("images", "annotations"):
        if name not in elements:
            fix = "give the path of a COCO or LVIS annotation file"
            raise DataError(located("this list is missing", file=path, field=name, fix=fix))
    images = elements.pop("images")
    if not len(images.spans):
        fix = "an empty data set cannot be converted: check the path and the split"
        raise DataError(located("the list is empty", file=path, field="images", fix=fix))
    image_ids = _join(mapper(_image_ids, _blocks(path, images)))
    repeated = _repeated(image_ids)
    lost = [("images", Broken(i, i, "duplicate image id")) for i in image_ids[repeated].tolist()]
    table = elements["categories"].spans if "categories" in elements else np.zeros((0, 2), np.int64)
    found = _annotations(path, elements.pop("annotations"), mapper)
    lost += [("annotations", broken) for broken in found.pop("broken")]
    rows, lost_rows = _grouped(image_ids[~repeated], found)
    return Index(str(path), images.spans[~repeated], table, rows, lost + lost_rows)


def read_images(fd: int, index: Index, low: int, high: int) -> list[Image | Broken]:
    """Images low..high-1, from the open annotation file `fd`."""
    return decode_elements(read_spans(fd, index.images[low:high]), _decode_images)


def rows_of(index: Index, low: int, high: int) -> Rows:
    """The annotations of images low..high-1; their `offsets` count from the first of them."""
    offsets = index.rows.offsets[low : high + 1]
    return index.rows.take(slice(offsets[0], offsets[-1]), offsets - offsets[0])


def read_outlines(fd: int, rows: Rows) -> list[bytes]:
    """The `segmentation` of each row as JSON text, from the open annotation file `fd`."""
    found = decode_elements(read_spans(fd, rows.spans), _decode_outlines)
    return [b"null" if isinstance(o, Broken) else bytes(o.segmentation) for o in found]


def decode_elements(elements: list[bytes], decode: Decode) -> list[Any]:
    """All elements at once; one by one, with a Broken for each bad one, if that fails."""
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
        known = json.loads(element)  # accepts NaN, so that the id can still be named
    except ValueError:
        known = {}
    if not isinstance(known, dict):
        known = {}
    ids = [v if isinstance(v := known.get(k), int | str) else None for k in ("id", "image_id")]
    return Broken(*ids, problem)


def _blocks(path: str | Path, elements: Elements) -> Iterator[Block]:
    """Runs of neighbouring elements, at least one."""
    spans, bulk = elements.spans, elements.bulk
    for i in range(0, max(len(spans), 1), tuning.ELEMENTS_PER_BLOCK):
        own = spans[i : i + tuning.ELEMENTS_PER_BLOCK]
        a, b = np.searchsorted(bulk[:, 0], [own[0, 0], own[-1, 1]]) if len(own) else (0, 0)
        yield str(path), own, bulk[a:b]


def _read_block(block: Block, decode: Decode) -> list[Any]:
    """The elements of a block without their bulk, all at once; element by element if that fails."""
    path, spans, bulk = block
    if not len(spans):
        return []
    base, end = int(spans[0, 0]), int(spans[-1, 1])
    page = base - base % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as handle:
        data = memoryview(mmap.mmap(handle.fileno(), end - page, access=mmap.ACCESS_READ, offset=page))
    kept = np.concatenate([[base], bulk.ravel(), [end]]).reshape(-1, 2) - page
    gc.disable()  # thousands of small objects, none of them cyclic
    try:
        return decode(b"[" + b"".join([data[a:b] for a, b in kept.tolist()]) + b"]")
    except (msgspec.ValidationError, msgspec.DecodeError):
        return decode_elements([bytes(data[a:b]) for a, b in (spans - page).tolist()], decode)
    finally:
        gc.enable()


def _image_ids(block: Block) -> np.ndarray:
    """Ids of a block of images; an element without one counts as a image of its own."""
    found = _read_block(block, _decode_ids)
    return _id_array([f"? byte {a}" if e.id is None else e.id for e, a in zip(found, block[1][:, 0], strict=True)])


def _annotations(path: str | Path, elements: Elements, mapper: Mapper) -> dict[str, Any]:
    """Columns of all annotations in file order, as in Rows, and their `owners`; the `broken` ones are left out.

    Blocks are copied into place as they come, so that memory is that of the columns.
    """
    spans = elements.spans
    size, at, done = len(spans), 0, 0
    columns = {name: np.empty((size, *shape), kind) for name, shape, kind in _COLUMNS}
    good, broken = np.ones(size, bool), []
    for part, part_good, part_broken in mapper(_annotation_columns, _blocks(path, elements)):
        for name, values in part.items():
            if values.dtype.kind == "U" and columns[name].dtype.kind == "i":
                columns[name] = columns[name].astype(object)  # text of any length
            columns[name][at : at + len(values)] = values
        good[done : done + len(part_good)] = part_good
        broken += part_broken
        at, done = at + len(part["ids"]), done + len(part_good)
    if broken:
        spans = spans[good]
        columns = {name: column[:at] for name, column in columns.items()}
    texts = {name: column.astype(str) for name, column in columns.items() if column.dtype.kind == "O"}
    return columns | texts | {"spans": spans, "broken": broken}


def _annotation_columns(block: Block) -> tuple[dict[str, np.ndarray], np.ndarray, list[Broken]]:
    """(columns of the sound elements of a block of annotations, which these are, the other elements)."""
    found = _read_block(block, _decode_annotations)
    good, broken = np.ones(len(found), bool), []
    if Broken in set(map(type, found)):
        good = np.array([not isinstance(e, Broken) for e in found])
        broken = [e for e in found if isinstance(e, Broken)]
        found = [e for e in found if not isinstance(e, Broken)]
    count = len(found)
    boxes = np.fromiter(itertools.chain.from_iterable(map(attrgetter("bbox"), found)), np.float64, 4 * count)
    columns = {
        "ids": _id_array(list(map(attrgetter("id"), found))),
        "owners": _id_array(list(map(attrgetter("image_id"), found))),
        "categories": np.fromiter(map(attrgetter("category_id"), found), np.int64, count),
        "boxes": boxes.reshape(-1, 4),
        "crowd": np.fromiter(map(attrgetter("iscrowd"), found), bool, count),
    }
    return columns, good, broken


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    if any(p.dtype.kind != "i" for p in parts):
        parts = [p.astype(str) for p in parts]
    return np.concatenate(parts)


def _id_array(ids: list[int | str]) -> np.ndarray:
    """int64 when every id is an integer, else text (in a file that mixes them 1 and "1" are one id)."""
    if set(map(type, ids)) <= {int}:
        return np.array(ids, dtype=np.int64)
    return np.array([str(i) for i in ids])


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Bool [N]: ids that appeared before."""
    repeated = np.ones(len(ids), dtype=bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated


def _grouped(image_ids: np.ndarray, found: dict[str, Any]) -> tuple[Rows, list[tuple[str, Broken]]]:
    """Rows grouped by image, in file order within each, and what belongs to no image or is there twice.

    The columns in `found` are taken out one by one, so that none is in memory twice for long.
    """
    ids, owners = found["ids"], found.pop("owners")
    if image_ids.dtype.kind != owners.dtype.kind:
        image_ids, owners = image_ids.astype(str), owners.astype(str)
    by_id = np.argsort(image_ids, kind="stable").astype(np.int32)
    sorted_ids = image_ids[by_id]
    place = np.minimum(np.searchsorted(sorted_ids, owners), len(sorted_ids) - 1)
    orphan = sorted_ids[place] != owners
    image = by_id[place]
    del place
    repeated = _repeated(ids)
    lost = [
        ("annotations", Broken(ids[i].item(), owners[i].item(), "duplicate annotation id"))
        for i in np.flatnonzero(repeated)
    ]
    lost += [
        ("annotations", Broken(ids[i].item(), owners[i].item(), f"image_id {owners[i].item()!r} is not in images"))
        for i in np.flatnonzero(orphan & ~repeated)
    ]
    image[orphan | repeated] = len(image_ids)  # behind all others
    counts = np.bincount(image, minlength=len(image_ids))[: len(image_ids)]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    order = np.argsort(image, kind="stable")[: offsets[-1]]
    del ids, owners, image
    return Rows(*(found.pop(name)[order] for name in ("ids", "categories", "boxes", "crowd", "spans")), offsets), lost
