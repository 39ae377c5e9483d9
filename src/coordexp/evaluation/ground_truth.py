"""Ground truth as columns: read from a COCO or LVIS annotation file, in pixels of the source image."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from coordexp.datasets.annotation_entries import (
    AnnotationEntry,
    ImageEntry,
    InvalidElement,
    PhraseEntry,
    decode_elements,
)
from coordexp.datasets.annotation_file import check_annotation_file, check_in_entries, mapped_json
from coordexp.datasets.categories import Category
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.source import OnBad
from coordexp.geometry.boxes import looks_normalised
from coordexp.records import Record
from coordexp.runtime.errors import DataError, located


class AnnotationRow(AnnotationEntry):
    """One entry of `annotations` with its segmentation; `bbox` is x, y, w, h in pixels."""

    segmentation: msgspec.Raw = msgspec.Raw()


class _File(msgspec.Struct):
    images: list[ImageEntry]
    annotations: list[AnnotationRow]
    categories: list[Category]


class GroundTruthPhrase(NamedTuple):
    """A phrase about the image with index `image`, and the ids of the objects that it describes."""

    image: int
    text: str
    annotation_ids: tuple[int | str, ...]


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of I images, M objects and K categories.

    Images are sorted by id, objects by image, category and annotation id, so the order of the file has no effect.
    `image` and `category` are indices into `image_ids` and `categories`. `negative` and `not_exhaustive` hold sorted
    codes image * K + category of the federated lists. `skipped` counts entries of the file that were left out, by
    reason (the reasons of `datasets.convert`).
    """

    image_ids: list[int | str]
    sizes: np.ndarray  # float64 [I, 2], (width, height) in pixels
    categories: list[Category]
    image: np.ndarray  # int64 [M]
    category: np.ndarray  # int64 [M]
    box: np.ndarray  # float64 [M, 4], x, y, w, h in pixels
    area: np.ndarray  # float64 [M], annotated area in square pixels
    crowd: np.ndarray  # bool [M]
    annotation_id: np.ndarray  # int64 or str [M]
    negative: np.ndarray  # int64
    not_exhaustive: np.ndarray  # int64
    federated: bool
    segmentation: list[msgspec.Raw]
    skipped: dict[str, int] = field(default_factory=dict)
    phrases: list[GroundTruthPhrase] = field(default_factory=list)  # by image

    @cached_property
    def index_of(self) -> dict[int | str, int]:
        """Image id -> index."""
        return {image_id: i for i, image_id in enumerate(self.image_ids)}

    @property
    def num_images(self) -> int:
        """Number of images I."""
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """Number of annotated objects, crowds excluded."""
        return int((~self.crowd).sum())

    @property
    def num_categories(self) -> int:
        """Number of categories K."""
        return len(self.categories)

    @cached_property
    def objects_per_image(self) -> np.ndarray:
        """Number of objects per image, crowds excluded; int64 [I]."""
        return np.bincount(self.image[~self.crowd], minlength=self.num_images)

    @cached_property
    def code(self) -> np.ndarray:
        """image * K + category of each object; int64 [M], sorted."""
        return self.image * self.num_categories + self.category

    @property
    def has_area(self) -> np.ndarray:
        """Whether the annotated area of each object is positive; lvis-api leaves the others out. bool [M]."""
        return self.area > 0

    @cached_property
    def judged(self) -> np.ndarray:
        """Sorted codes image * K + category of every verified pair (LVIS): negative, or with an object with area."""
        return np.union1d(self.code[self.has_area], self.negative)

    def of_objects(self, keep: np.ndarray) -> GroundTruth:
        """The same images with the objects `keep` (bool [M]) only."""
        return replace(
            self,
            image=self.image[keep],
            category=self.category[keep],
            box=self.box[keep],
            area=self.area[keep],
            crowd=self.crowd[keep],
            annotation_id=self.annotation_id[keep],
            segmentation=[s for s, kept in zip(self.segmentation, keep, strict=True) if kept],
        )

    def restricted(self, keep: np.ndarray) -> GroundTruth:
        """Ground truth of the images `keep` (bool [I]) only."""
        new_index = np.cumsum(keep) - 1
        objects = self.of_objects(keep[self.image])
        count = self.num_categories

        def codes(pairs: np.ndarray) -> np.ndarray:
            image, category = np.divmod(pairs, count)
            return (new_index[image] * count + category)[keep[image]]

        return replace(
            objects,
            image_ids=[i for i, kept in zip(self.image_ids, keep, strict=True) if kept],
            sizes=self.sizes[keep],
            image=new_index[objects.image],
            negative=codes(self.negative),
            not_exhaustive=codes(self.not_exhaustive),
            phrases=[p._replace(image=int(new_index[p.image])) for p in self.phrases if keep[p.image]],
        )


class _InvalidEntries:
    """Handles invalid entries of a file: the first one raises, or with `on_bad: skip` all are left out and counted."""

    def __init__(self, path: Path, on_bad: OnBad) -> None:
        self.path, self.skip = path, on_bad == "skip"
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, problem: str, **details: Any) -> None:
        """Count one invalid entry, or raise DataError with `problem` and `details` (see `located`)."""
        if not self.skip:
            raise DataError(located(problem, file=self.path, **details))
        self.counts[reason] += 1


def load_ground_truth(path: str | Path, on_bad: OnBad = "error") -> GroundTruth:
    """Read a COCO or LVIS annotation file; DataError naming file and id of the first invalid entry.

    Invalid, as in the conversion: duplicate image, category or annotation ids, annotations of unknown images or
    categories, non-finite boxes or areas, images without a size, categories without a name. With `on_bad="skip"` these
    are left out and counted, and so are boxes outside their image or within 0..1. Boxes of negative size and unknown
    categories in federated lists are always left out and counted.
    """
    path, invalid = Path(path), _InvalidEntries(Path(path), on_bad)
    non_finite = check_annotation_file(path)
    try:
        with mapped_json(path) as data:
            content = msgspec.json.decode(bytes(data), type=_File)
    except msgspec.DecodeError:
        content = _read_entries(path, non_finite, invalid)
    return _build(content.images, content.annotations, content.categories, invalid)


def _read_entries(path: Path, non_finite: np.ndarray, invalid: _InvalidEntries) -> _File:
    """Decode every entry separately, as the conversion does, so that unreadable ones can be skipped."""
    spans = element_spans(path, tuple(_KINDS))
    check_in_entries(path, non_finite, spans.values())
    lists, fd = [], os.open(path, os.O_RDONLY)
    try:
        for name, kind in _KINDS.items():
            if name not in spans:
                raise DataError(located("list is missing", file=path, field=name))
            rows = decode_elements(read_spans(fd, spans[name]), msgspec.json.Decoder(list[kind]).decode)
            lists.append([row for row in rows if not isinstance(row, InvalidElement)])
            for row in (row for row in rows if isinstance(row, InvalidElement)):
                invalid.add(f"unreadable entry of {name}", f"{name}: id {row.id!r}: {row.problem}")
    finally:
        os.close(fd)
    return _File(*lists)


_KINDS = {"images": ImageEntry, "annotations": AnnotationRow, "categories": Category}


def _build(
    images: list[ImageEntry], annotations: list[AnnotationRow], categories: list[Category], invalid: _InvalidEntries
) -> GroundTruth:
    """Columns of decoded annotations; invalid entries go to `invalid`."""
    categories = _named(_unique(categories, "categories", "repeated category id", invalid), invalid)
    categories.sort(key=lambda category: category.id)
    images = _sized(_unique(images, "images", "duplicate image id", invalid), invalid)
    images.sort(key=lambda image: image_key(image.id))
    category_index = {category.id: i for i, category in enumerate(categories)}
    key = _key_of([image.id for image in images], [annotation.image_id for annotation in annotations])
    image_index = {key(image.id): i for i, image in enumerate(images)}
    annotations = _unique(annotations, "annotations", "duplicate annotation id", invalid)
    indices = [image_index.get(key(annotation.image_id)) for annotation in annotations]
    pairs = zip(annotations, indices, strict=True)
    annotations = [row for row, index in pairs if _usable(row, images, index, category_index, invalid)]
    image = np.array([image_index[key(a.image_id)] for a in annotations], dtype=np.int64)
    category = np.array([category_index[a.category_id] for a in annotations], dtype=np.int64)
    box = np.array([a.bbox for a in annotations], dtype=np.float64).reshape(-1, 4)
    area = np.array([a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations], dtype=np.float64)
    strings = any(isinstance(a.id, str) for a in annotations)
    ids = np.array([str(a.id) if strings else a.id for a in annotations], dtype=str if strings else np.int64)
    order = np.lexsort((ids, category, image))
    return GroundTruth(
        image_ids=[i.id for i in images],
        sizes=np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2),
        categories=categories,
        image=image[order],
        category=category[order],
        box=box[order],
        area=area[order],
        crowd=np.array([a.iscrowd for a in annotations], dtype=bool)[order],
        annotation_id=ids[order],
        negative=_pair_codes(images, "neg_category_ids", category_index, invalid),
        not_exhaustive=_pair_codes(images, "not_exhaustive_category_ids", category_index, invalid),
        federated=any(i.neg_category_ids is not None for i in images),
        segmentation=[annotations[i].segmentation for i in order],
        phrases=_phrases(images, ids, invalid),
        skipped=dict(sorted(invalid.counts.items())),
    )


def _phrases(images: list[ImageEntry], ids: np.ndarray, invalid: _InvalidEntries) -> list[GroundTruthPhrase]:
    """The phrases of the images, without those that refer to an annotation that cannot be used."""
    if not any(image.phrases for image in images):
        return []
    known, phrases = set(ids.astype(str).tolist()), []
    for i, image in enumerate(images):
        for entry in image.phrases or ():
            if {str(annotation_id) for annotation_id in entry.annotation_ids} <= known:
                phrases.append(GroundTruthPhrase(i, entry.text, tuple(dict.fromkeys(entry.annotation_ids))))
            else:
                invalid.counts["phrase without one of its objects"] += 1
    return phrases


def restrict_to_images(ground_truth: GroundTruth, image_ids: Iterable[int | str], path: Path) -> GroundTruth:
    """Ground truth of the images `image_ids` only; DataError naming `path` for an image that is not annotated."""
    keep = np.zeros(ground_truth.num_images, dtype=bool)
    for image_id in image_ids:
        index = ground_truth.index_of.get(image_id)
        if index is None:
            fix = "pass the records of the annotated split"
            raise DataError(located(f"image {image_id!r} is not in the annotations", file=path, fix=fix))
        keep[index] = True
    return ground_truth.restricted(keep)


def restrict_to_phrases(ground_truth: GroundTruth, recorded: Mapping[int | str, set[str]]) -> GroundTruth:
    """Ground truth with only the phrases that a record has, given by their texts for each image id."""
    ids = ground_truth.image_ids
    return replace(ground_truth, phrases=[p for p in ground_truth.phrases if p.text in recorded.get(ids[p.image], ())])


def ground_truth_from_records(
    records: Sequence[Record], categories: list[Category], *, federated: bool, path: Path = Path("records")
) -> GroundTruth:
    """Ground truth of converted records: boxes and polygons in pixels of the source images.

    `federated` uses the records' lists of verified categories (LVIS). Categories of which the conversion left out an
    annotation of the image (a crowd) are always in `not_exhaustive`. Errors name `path`.
    """
    known = {category.id for category in categories}  # no detection can map to an id without a name
    images, annotations = [], []
    for record in records:
        meta = record.metadata
        width, height = meta.source_width, meta.source_height
        both = (meta.neg_category_ids, meta.not_exhaustive_category_ids)
        negative, not_exhaustive = ([i for i in category_ids if i in known] for category_ids in both)
        lists = {"neg_category_ids": negative if federated else None, "not_exhaustive_category_ids": not_exhaustive}
        first = len(annotations)
        phrases = [PhraseEntry(p.text, [first + i for i in p.objects]) for p in record.phrases] or None
        images.append(ImageEntry(meta.image_id, width, height, **lists, phrases=phrases))
        for obj in record.objects:
            x1, y1, x2, y2 = obj.norm_box
            corners = obj.norm if obj.poly else [x1, y1, x2, y1, x2, y2, x1, y2]
            polygon = [value * (height if n % 2 else width) for n, value in enumerate(corners)]
            annotations.append(
                AnnotationRow(
                    id=len(annotations),
                    image_id=meta.image_id,
                    category_id=obj.category_id,
                    bbox=(x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height),
                    iscrowd=int(obj.iscrowd),
                    segmentation=msgspec.Raw(msgspec.json.encode([polygon])),
                )
            )
    return _build(images, annotations, categories, _InvalidEntries(path, "error"))


def image_key(image_id: int | str) -> tuple[int, int, str]:
    """Sort key of image ids: integers by value, then strings."""
    return (0, image_id, "") if isinstance(image_id, int) else (1, 0, image_id)


def _key_of(images: list[int | str], owners: list[int | str]) -> Callable[[int | str], int | str]:
    """Comparison key of image ids: as strings if any id is a string, as in the conversion."""
    return str if any(isinstance(i, str) for ids in (images, owners) for i in ids) else lambda value: value


def _unique(rows: list[Any], name: str, reason: str, invalid: _InvalidEntries) -> list[Any]:
    """Rows without a duplicate id; 1 and "1" are the same id."""
    key = _key_of([row.id for row in rows], [])
    seen: set[int | str] = set()
    kept = []
    for row in rows:
        if key(row.id) in seen:
            fix = "make every id unique; duplicate ids would silently give wrong scores"
            invalid.add(reason, f"{name}: id {row.id!r} occurs more than once", fix=fix)
        else:
            seen.add(key(row.id))
            kept.append(row)
    return kept


def _named(categories: list[Category], invalid: _InvalidEntries) -> list[Category]:
    for category in categories:
        if not category.name.strip():
            invalid.add("category without a name", f"categories: id {category.id} has no name")
    return [category for category in categories if category.name.strip()]


def _sized(images: list[ImageEntry], invalid: _InvalidEntries) -> list[ImageEntry]:
    for image in images:
        if min(image.width, image.height) < 1:
            invalid.add("impossible size", f"images: id {image.id!r}: has no size", expected="positive sizes")
    return [image for image in images if min(image.width, image.height) >= 1]


def _usable(
    row: AnnotationRow,
    images: list[ImageEntry],
    index: int | None,
    category_index: dict[int, int],
    invalid: _InvalidEntries,
) -> bool:
    """Whether an annotation can be scored; `index` is that of its image in `images`, None if unknown."""
    x, y, w, h = row.bbox
    name = f"annotation {row.id}"
    if index is None:
        problem = f"{name}: image_id {row.image_id!r} is not in the file's list"
        invalid.add("annotation of no image", problem)
    elif row.category_id not in category_index:
        problem = f"{name}: category_id {row.category_id!r} is not in the file's list"
        invalid.add("unknown category", problem)
    elif not all(map(math.isfinite, (*row.bbox, row.area or 0.0))):
        problem = f"annotations: id {row.id}: non-finite box or area"
        invalid.add("box not finite", problem, field="bbox", expected="finite x, y, w, h", found=list(row.bbox))
    elif min(w, h) < 0:
        invalid.counts["empty box"] += 1
    elif invalid.skip and not (x < images[index].width and y < images[index].height and x + w > 0 and y + h > 0):
        invalid.counts["outside the image"] += 1
    elif invalid.skip and max(x + w, y + h) <= 1 and looks_normalised(np.array(row.bbox))[0]:
        invalid.counts["within 0..1, not in pixels"] += 1
    else:
        return True
    return False


def _pair_codes(
    images: list[ImageEntry], name: str, category_index: dict[int, int], invalid: _InvalidEntries
) -> np.ndarray:
    codes = []
    for i, image in enumerate(images):
        for category_id in getattr(image, name) or ():
            if category_id in category_index:
                codes.append(i * len(category_index) + category_index[category_id])
            else:  # no detection can have a category without a name
                invalid.counts[f"unknown category in {name}"] += 1
    return np.unique(np.array(codes, dtype=np.int64))
