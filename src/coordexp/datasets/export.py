"""Exports records or predictions to the formats of other tools, for example to pre-label images.

Boxes are in pixels of the source images, and images have the names that they have in the dataset.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import msgspec

from coordexp.datasets.formats.reading import BadItem, relative_name
from coordexp.records import Detection, Metadata, Object, Prediction, Record, decode_record, record_problems
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import NOT_JSON, atomic_dir, enumerate_lines

ExportFormat = Literal["coco", "yolo", "voc", "odvg", "label_studio"]
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)
_decode_prediction = msgspec.json.Decoder(Prediction).decode


class ExportedBox(msgspec.Struct, frozen=True):
    """A box (x1, y1, x2, y2) in pixels of the source image, and the polygon [x, y, ...] if it has one.

    score: of a prediction, None in ground truth.
    """

    name: str
    category_id: int
    xyxy: tuple[float, float, float, float]
    score: float | None = None
    polygon: list[float] | None = None
    iscrowd: bool = False


class ExportedImage(msgspec.Struct, frozen=True):
    """An image of the source dataset and its boxes; sizes are in pixels."""

    image_id: int | str
    file_name: str
    width: int
    height: int
    boxes: list[ExportedBox]


@dataclass
class Export:
    """What a records or predictions file contains: {id: name} of all categories, and the images one by one.

    counts: of images, boxes and what was left out; complete after `images` has been consumed.
    """

    path: Path
    categories: dict[int, str]
    records: Path | None = None
    min_score: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._ids = {name: category_id for category_id, name in self.categories.items()}

    @property
    def is_predictions(self) -> bool:
        """Whether the boxes are predicted; otherwise they are ground truth."""
        return self.records is not None

    def images(self) -> Iterator[ExportedImage]:
        """The images in the order of the file."""
        self.counts.clear()
        return self._predicted() if self.records else self._annotated()

    def _annotated(self) -> Iterator[ExportedImage]:
        for number, record in _records(self.path):
            yield self._image(record.metadata, record.objects, f"{self.path}:{number}")

    def _predicted(self) -> Iterator[ExportedImage]:
        assert self.records is not None
        known = {record.metadata.image_id: record.metadata for _, record in _records(self.records)}
        for number, prediction in _predictions(self.path):
            facts = known.get(prediction.image_id)
            if facts is None:
                fix = "pass the records that the predictions were made from"
                where = {"file": self.path, "line": number, "field": "image_id", "found": prediction.image_id}
                raise DataError(located(f"no record of the image in {self.records}", **where, fix=fix))
            yield self._image(facts, prediction.detections, f"{self.path}:{number}")

    def _image(self, facts: Metadata, objects: Sequence[Object | Detection], where: str) -> ExportedImage:
        try:
            name = relative_name(facts.file_name or "")
        except BadItem as problem:
            fix = "convert the dataset again: the metadata of its records then has file names"
            raise DataError(f"{where}: metadata.file_name: {problem}\n  -> {fix}") from None
        size = facts.source_width, facts.source_height
        boxes = [box for item in objects if (box := self._box(item, *size)) is not None]
        self.counts["images"] += 1
        self.counts["boxes"] += len(boxes)
        return ExportedImage(facts.image_id, name, *size, boxes)

    def _box(self, item: Object | Detection, width: int, height: int) -> ExportedBox | None:
        score = item.score if isinstance(item, Detection) else None
        if score is not None and score < self.min_score:
            self.counts[f"boxes with a score below {self.min_score:g}"] += 1
            return None
        norm = item.norm if isinstance(item, Detection) else item.norm_box
        x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) * side for v, side in zip(norm, (width, height) * 2, strict=True))
        if not (x1 < x2 and y1 < y2):
            self.counts["boxes without area"] += 1
            return None
        flat = item.poly if isinstance(item, Detection) else item.norm if item.poly is not None else None
        polygon = [v * (width, height)[k % 2] for k, v in enumerate(flat)] if flat else None
        crowd = isinstance(item, Object) and item.iscrowd
        return ExportedBox(item.desc, self._ids[item.desc], (x1, y1, x2, y2), score, polygon, crowd)


def open_export(path: str | Path, records: str | Path | None = None, min_score: float = 0.0) -> Export:
    """The contents of a records or predictions file; the latter needs the `records` of its images.

    DataError with file and line for a line that is neither, and for one name with two category ids.
    """
    path, records = Path(path), Path(records) if records is not None else None
    if _is_predictions(path) != (records is not None):
        problem = "the file holds records" if records else "predictions do not name their images"
        fix = "omit --records" if records else "add --records with the records that they were made from"
        raise DataError(located(problem, file=path, fix=fix))
    ids: dict[str, int] = {}
    for number, record in _records(records or path):
        for o in record.objects:
            if ids.setdefault(o.desc, o.category_id) != o.category_id:
                found = [ids[o.desc], o.category_id]
                problem = f"category {o.desc!r} has two ids"
                raise DataError(located(problem, file=records or path, line=number, field="category_id", found=found))
    names: dict[int, str] = {}
    for name, category_id in ids.items():
        if names.setdefault(category_id, name) != name:
            problem = f"categories {names[category_id]!r} and {name!r} have the same id {category_id}"
            raise DataError(located(problem, file=records or path))
    if records is not None:
        found = {d.desc for _, prediction in _predictions(path) for d in prediction.detections}
        new = sorted(found - set(ids))
        names |= dict(enumerate(new, start=max(names, default=0) + 1))
    return Export(path, dict(sorted(names.items())), records, min_score)


def export(
    path: str | Path,
    target: ExportFormat,
    out: str | Path,
    *,
    records: str | Path | None = None,
    min_score: float = 0.0,
    image_dirs: Sequence[str | Path] = (),
) -> dict[str, int]:
    """Write a records or predictions file to the new folder `out` in the format `target`; returns counts.

    With `image_dirs`, the folders of the source images, these are linked to `out/images` (or copied, on another disk).
    Scores are kept by coco and label_studio; crowds and polygons by coco only.
    """
    from coordexp.datasets.export_formats import WRITERS

    if target not in WRITERS:
        raise DataError(located("unknown format", expected=list(WRITERS), found=target))
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(located("the folder exists and is not empty", file=out, fix="choose a new folder"))
    content = open_export(path, records, min_score)
    with atomic_dir(out) as folder:
        WRITERS[target](content, _with_files(content, folder, image_dirs), folder)
    return dict(content.counts)


def _with_files(content: Export, folder: Path, image_dirs: Sequence[str | Path]) -> Iterator[ExportedImage]:
    """The images; each is linked to `folder/images` if there are `image_dirs`."""
    for image in content.images():
        if image_dirs:
            source = next((file for d in image_dirs if (file := Path(d) / image.file_name).is_file()), None)
            if source is None:
                fix = "pass every image folder of the dataset with --images"
                folders = [str(path) for path in image_dirs]
                raise DataError(located("image not found", file=image.file_name, expected=folders, fix=fix))
            _link(source.resolve(), folder / "images" / image.file_name)
        yield image


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise DataError(located("two images have the same name", file=target.name)) from None
    except OSError:
        shutil.copyfile(source, target)


def _is_predictions(path: Path) -> bool:
    try:
        for number, line in enumerate_lines(path):
            try:
                first = msgspec.json.decode(line)
            except NOT_JSON as error:
                raise DataError(located(f"not JSON: {error}", file=path, line=number)) from error
            return isinstance(first, dict) and "detections" in first
    except OSError as error:
        raise DataError(located(f"cannot be read: {error.strerror}", file=path)) from error
    raise DataError(located("the file is empty", file=path))


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        lines = enumerate_lines(path)
        for number, line in lines:
            record = decode_record(line, path, number)
            if problems := record_problems(record):
                name, problem = problems[0]
                raise DataError(located(problem, file=path, line=number, field=name))
            yield number, record
    except OSError as error:
        raise DataError(located(f"cannot be read: {error.strerror}", file=path)) from error


def _predictions(path: Path) -> Iterator[tuple[int, Prediction]]:
    for number, line in enumerate_lines(path):
        try:
            prediction = _decode_prediction(line)
        except NOT_JSON as error:
            raise DataError(located(f"not a prediction: {error}", file=path, line=number)) from error
        bad = [d.norm for d in prediction.detections if len(d.norm) != 4 or any(v != v for v in d.norm)]
        if bad:
            raise DataError(located("not a box", file=path, line=number, field="detections.norm", found=bad[0]))
        yield number, prediction
