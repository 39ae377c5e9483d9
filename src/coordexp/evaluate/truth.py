"""The benchmark's own annotation file (COCO or LVIS layout) as columns, in pixels of the source picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordexp.contract import Record
from coordexp.data.categories import Category
from coordexp.errors import DataError, located


class ImageRow(msgspec.Struct):
    """One entry of `images`; the lists are LVIS's, None in COCO layout."""

    id: int | str
    width: int
    height: int
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class AnnotationRow(msgspec.Struct):
    """One entry of `annotations`; `bbox` is x, y, w, h in pixels."""

    id: int
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    segmentation: msgspec.Raw = msgspec.Raw()


class _File(msgspec.Struct):
    images: list[ImageRow]
    annotations: list[AnnotationRow]
    categories: list[Category]


@dataclass(frozen=True)
class Truth:
    """Ground truth of I pictures, M objects and K categories.

    Pictures are sorted by id, objects by picture, category and annotation id, so the order of the file
    is without effect. `image` and `category` are indices into `image_ids` and `categories`.
    `negative` and `not_exhaustive` hold sorted codes picture * K + category of the federated lists.
    """

    image_ids: list[int | str]
    sizes: np.ndarray  # float64 [I, 2], (width, height) in pixels
    categories: list[Category]
    image: np.ndarray  # int64 [M]
    category: np.ndarray  # int64 [M]
    box: np.ndarray  # float64 [M, 4], x, y, w, h in pixels
    area: np.ndarray  # float64 [M], the annotation's own area in square pixels
    crowd: np.ndarray  # bool [M]
    annotation_id: np.ndarray  # int64 [M]
    negative: np.ndarray  # int64
    not_exhaustive: np.ndarray  # int64
    federated: bool
    segmentation: list[msgspec.Raw]

    @cached_property
    def index_of(self) -> dict[int | str, int]:
        """Picture id -> index."""
        return {image_id: i for i, image_id in enumerate(self.image_ids)}

    @property
    def pictures(self) -> int:
        """Number of pictures I."""
        return len(self.image_ids)

    @cached_property
    def objects_per_picture(self) -> np.ndarray:
        """Objects that are not crowds in each picture, int64 [I]."""
        return np.bincount(self.image[~self.crowd], minlength=self.pictures)

    @cached_property
    def judged(self) -> np.ndarray:
        """Sorted codes picture * K + category of every pair that has been annotated: present or negative."""
        return np.union1d(self.image * len(self.categories) + self.category, self.negative)

    def restricted(self, keep: np.ndarray) -> Truth:
        """The same truth with only the pictures `keep` (bool [I])."""
        position = np.cumsum(keep) - 1
        objects = keep[self.image]
        count = len(self.categories)

        def codes(pairs: np.ndarray) -> np.ndarray:
            picture, category = np.divmod(pairs, count)
            return (position[picture] * count + category)[keep[picture]]

        return replace(
            self,
            image_ids=[i for i, kept in zip(self.image_ids, keep, strict=True) if kept],
            sizes=self.sizes[keep],
            image=position[self.image[objects]],
            category=self.category[objects],
            box=self.box[objects],
            area=self.area[objects],
            crowd=self.crowd[objects],
            annotation_id=self.annotation_id[objects],
            negative=codes(self.negative),
            not_exhaustive=codes(self.not_exhaustive),
            segmentation=[s for s, kept in zip(self.segmentation, objects, strict=True) if kept],
        )


def load(path: str | Path) -> Truth:
    """Read an annotation file; DataError naming file and id for anything that cannot be scored.

    Refused: doubled picture, category or annotation ids, annotations of unknown pictures or categories,
    boxes or areas that are not finite or negative, pictures without a size.
    """
    path = Path(path)
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError as error:
        raise DataError(located("file not found", file=path)) from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(located(f"not a COCO or LVIS annotation file: {error}", file=path)) from error
    return build(content.images, content.annotations, content.categories, path)


def build(images: list[ImageRow], annotations: list[AnnotationRow], categories: list[Category], path: Path) -> Truth:
    """Columns of decoded annotations; `path` is for error texts."""
    images = sorted(images, key=lambda image: image_key(image.id))
    categories = sorted(categories, key=lambda category: category.id)
    image_index = _index([image.id for image in images], "images", path)
    category_index = _index([category.id for category in categories], "categories", path)
    _index([annotation.id for annotation in annotations], "annotations", path)
    for annotation in annotations:
        _known(annotation.image_id, image_index, f"annotation {annotation.id}", "image_id", path)
        _known(annotation.category_id, category_index, f"annotation {annotation.id}", "category_id", path)
    for category in categories:
        if not category.name.strip():
            raise DataError(located(f"categories: id {category.id} has no name", file=path))
    for image in images:
        if min(image.width, image.height) < 1:
            raise DataError(located(f"images: id {image.id!r}: has no size", file=path, expected="positive sizes"))
    image = np.array([image_index[a.image_id] for a in annotations], dtype=np.int64)
    category = np.array([category_index[a.category_id] for a in annotations], dtype=np.int64)
    box = np.array([a.bbox for a in annotations], dtype=np.float64).reshape(-1, 4)
    area = np.array([a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations], dtype=np.float64)
    ids = np.array([a.id for a in annotations], dtype=np.int64)
    bad = ~np.isfinite(box).all(axis=1) | (box[:, 2:] < 0).any(axis=1) | ~np.isfinite(area)
    if bad.any():
        at = int(np.argmax(bad))
        problem = f"annotations: id {ids[at]}: box or area cannot be used"
        raise DataError(located(problem, file=path, field="bbox", expected="finite x, y, w, h", found=box[at].tolist()))
    order = np.lexsort((ids, category, image))
    return Truth(
        image_ids=[i.id for i in images],
        sizes=np.array([(i.width, i.height) for i in images], dtype=np.float64).reshape(-1, 2),
        categories=categories,
        image=image[order],
        category=category[order],
        box=box[order],
        area=area[order],
        crowd=np.array([a.iscrowd for a in annotations], dtype=bool)[order],
        annotation_id=ids[order],
        negative=_pairs(images, "neg_category_ids", category_index, path),
        not_exhaustive=_pairs(images, "not_exhaustive_category_ids", category_index, path),
        federated=any(i.neg_category_ids is not None for i in images),
        segmentation=[annotations[i].segmentation for i in order],
    )


def of_records(
    records: Sequence[Record], categories: list[Category], *, federated: bool, path: Path = Path("records")
) -> Truth:
    """The truth that records carry: boxes and outlines in source pixels, and the federated lists if they count.

    `path` is for error texts.
    """
    known = {category.id for category in categories}  # nothing maps to an id without a name: it can be left out
    images, annotations = [], []
    for record in records:
        meta = record.metadata
        width, height = meta.source_width, meta.source_height
        both = (meta.neg_category_ids, meta.not_exhaustive_category_ids)
        lists = [[i for i in ids if i in known] if federated else None for ids in both]
        images.append(ImageRow(meta.image_id, width, height, *lists))
        for obj in record.objects:
            x1, y1, x2, y2 = obj.norm_box
            corners = obj.norm if obj.poly else [x1, y1, x2, y1, x2, y2, x1, y2]
            outline = [value * (height if n % 2 else width) for n, value in enumerate(corners)]
            annotations.append(
                AnnotationRow(
                    id=len(annotations),
                    image_id=meta.image_id,
                    category_id=obj.category_id,
                    bbox=(x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height),
                    iscrowd=int(obj.iscrowd),
                    segmentation=msgspec.Raw(msgspec.json.encode([outline])),
                )
            )
    return build(images, annotations, categories, path)


def image_key(image_id: int | str) -> tuple[int, int, str]:
    """Sorting key of picture ids: numbers by value, then texts."""
    return (0, image_id, "") if isinstance(image_id, int) else (1, 0, image_id)


def _index(ids: list[Any], field: str, path: Path) -> dict[Any, int]:
    index = {value: i for i, value in enumerate(ids)}
    if len(index) != len(ids):
        doubled = next(value for i, value in enumerate(ids) if index[value] != i)
        fix = "give every entry an id of its own; scores of doubled ids would be wrong silently"
        raise DataError(located(f"{field}: id {doubled!r} occurs more than once", file=path, fix=fix))
    return index


def _known(value: Any, index: dict[Any, int], where: str, field: str, path: Path) -> None:
    if value not in index:
        raise DataError(located(f"{where}: {field} {value!r} is not in the file's list", file=path))


def _pairs(images: list[ImageRow], name: str, category_index: dict[int, int], path: Path) -> np.ndarray:
    codes = []
    for i, image in enumerate(images):
        for category_id in getattr(image, name) or ():
            _known(category_id, category_index, f"image {image.id!r}", name, path)
            codes.append(i * len(category_index) + category_index[category_id])
    return np.unique(np.array(codes, dtype=np.int64))
