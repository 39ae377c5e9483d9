"""Hugging Face's ImageFolder: images beside a `metadata.jsonl` or `metadata.csv` with `file_name` and `objects`."""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, DatasetFormat, PerSplit, Proposal, SplitFiles
from coordexp.datasets.formats.entries import (
    BoxForm,
    BoxUnit,
    EntryOptions,
    EntryWriter,
    Image,
    Unit,
    convert_entry,
    declared_categories,
    open_text,
    parse_json,
    shown,
)
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located


class ObjectsOptions(EntryOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of formats with an `objects` value: {bbox: [...], categories: [...]}, or a list of objects."""

    bbox_key: Annotated[str, msgspec.Meta(description="key of the boxes in `objects`")] = "bbox"
    category_key: Annotated[str, msgspec.Meta(description="key of the categories in `objects`")] = "categories"
    box_form: Annotated[BoxForm, msgspec.Meta(description="xywh: x, y, width, height; xyxy: two corners")] = "xywh"
    box_unit: Annotated[
        BoxUnit, msgspec.Meta(description="pixels of the image; fractions of its sides, 0..1; or norm1000: 0..1000")
    ] = "pixels"


class ImageFolderOptions(ObjectsOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of an ImageFolder; paths are relative to its folder. Categories may be numbers: indices, from 0."""

    metadata: Annotated[
        PerSplit[str],
        msgspec.Meta(description="metadata file of each split, .jsonl or .csv; file names are relative to its folder"),
    ]


class _Row(msgspec.Struct):
    file_name: Any
    objects: Any = None


@FORMATS.register("imagefolder")
class ImageFolderFormat(DatasetFormat[ImageFolderOptions]):
    """Boxes have the declared form and unit; by default x, y, width, height in pixels."""

    Options = ImageFolderOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """Files `metadata.jsonl` or `metadata.csv` with `file_name` and `objects`."""
        found, keys = [], {}
        for path in listing.with_suffix(".jsonl", ".csv"):
            if not path.rpartition("/")[2].startswith("metadata."):
                continue
            line = listing.first_json(path) if path.endswith(".jsonl") else None
            objects = line.get("objects") if isinstance(line, dict) else None
            if isinstance(objects, dict) or (
                path.endswith(".csv") and b"objects" in listing.head(path).split(b"\n")[0]
            ):
                found.append(path)
                named = [key for key in ("categories", "category", "label", "labels") if key in (objects or {})]
                keys[path] = {"category_key": named[0]} if named and named[0] != "categories" else {}
        return [
            Proposal(
                options={"metadata": files, **keys[next(iter(files.values()))]}, evidence=", ".join(files.values())
            )
            for files in group_by_split(found)
        ]

    def files(self, split: str) -> SplitFiles:
        """The metadata file of `split`, and its folder."""
        name = self.options.metadata[split]
        return SplitFiles((name,), (Path(name).parent.as_posix(),))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file of all rows."""
        (name,), (image_dir,) = self.files(split)
        target, dirs = self.annotation_path(split, raw_dir), [folder / image_dir]
        categories = declared_categories(self.options.categories)
        with EntryWriter(target, folder / name, dirs, categories, self.options) as writer:
            for number, value in _csv_rows(writer) if name.endswith(".csv") else writer.json_lines():
                with writer.skipping("image", number):
                    row = convert_entry(value, _Row)
                    image = writer.image(row.file_name, "file_name")
                    add_objects(writer, image, number, row.objects, self.options)
                    writer.write(image)
        return self.source(split, target, dirs)


def add_objects(
    writer: EntryWriter, image: Image, line: int | None, objects: Any, options: ObjectsOptions, name: str = "objects"
) -> None:
    """Add the boxes of an `objects` value to the image; BadItem if it is missing or its lists differ in length."""
    boxes, categories = _columns(objects, options, name)
    unit = Unit.of(image, options.box_form, options.box_unit)
    for k, (box, category) in enumerate(zip(boxes, categories, strict=True)):
        with writer.skipping("annotation", line):
            field = f"{name}.{options.category_key}[{k}]"
            find = writer.categories.by_number if isinstance(category, int) else writer.categories.by_name
            writer.add_box(image, line, find(category, field), box, unit, f"{name}.{options.bbox_key}[{k}]")


def _columns(objects: Any, options: ObjectsOptions, name: str) -> tuple[list[Any], list[Any]]:
    keys = (options.bbox_key, options.category_key)
    if isinstance(objects, list) and all(isinstance(item, dict) for item in objects):
        boxes, categories = ([item.get(key) for item in objects] for key in keys)
    elif isinstance(objects, dict):
        boxes, categories = (objects.get(key) for key in keys)
        if not isinstance(boxes, list) or not isinstance(categories, list):
            expected = f"lists {keys[0]} and {keys[1]}"
            raise BadItem("invalid entry", f"{name}: expected {expected}, found the keys {shown(sorted(objects))}")
    else:
        raise BadItem("no objects", f"{name}: expected an object or a list of objects, found {shown(objects)}")
    if len(boxes) != len(categories):
        raise BadItem("invalid entry", f"{name}: {len(boxes)} boxes and {len(categories)} categories")
    return boxes, categories


def _csv_rows(writer: EntryWriter) -> Iterator[tuple[int, Any]]:
    """(line number, {file_name, objects}) of each row; `objects` is JSON text in its column."""
    csv.field_size_limit(1 << 30)  # crowded images have long lists
    with open_text(writer.file) as handle:
        reader = csv.reader(_text_lines(handle, writer.file), strict=True)
        try:
            header = next(reader, [])
            if not {"file_name", "objects"} <= set(header):
                fix = "separate the columns by commas"
                facts = {"expected": ["file_name", "objects"], "found": shown(header), "fix": fix}
                raise DataError(located("columns are missing", file=writer.file, line=1, **facts))
            for row in filter(None, reader):
                writer.count_entry()
                value = None
                with writer.skipping("image", reader.line_num):
                    value = _csv_entry(header, row)
                if value is not None:
                    yield reader.line_num, value
        except csv.Error as error:
            raise DataError(located(f"not a CSV file: {error}", file=writer.file, line=reader.line_num)) from error


def _csv_entry(header: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(header):
        raise BadItem("invalid entry", f"expected {len(header)} columns, found {len(row)}")
    columns = dict(zip(header, row, strict=True))
    objects = parse_json(columns["objects"].encode()) if columns["objects"] else None
    return {"file_name": columns["file_name"], "objects": objects}


def _text_lines(handle: IO[bytes], file: Path) -> Iterator[str]:
    for number, line in enumerate(handle, start=1):
        try:
            yield (line.removeprefix(BOM_UTF8) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte {error.start} of the line"
            raise DataError(located(problem, file=file, line=number, fix="save the file as UTF-8")) from error
