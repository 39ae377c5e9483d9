"""ODVG JSON lines of Grounding DINO: detection (labels of a closed set) and grounding (phrases of a caption).

The phrases of grounding lines are categories, or with `grounding: phrases` prompts of their own.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, AnnotationFileFormat, ImageDirs, PerSplit, Proposal, SplitFiles
from coordexp.datasets.formats.entries import (
    Categories,
    EntryOptions,
    EntryWriter,
    Image,
    Unit,
    convert_entry,
    declared_categories,
    shown,
)
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.source import Source
from coordexp.runtime.errors import ConfigError, DataError, located

GROUNDED = "object"  # the category of boxes that have a phrase only


class OdvgOptions(EntryOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in ODVG format; paths are relative to its folder."""

    annotations: Annotated[PerSplit[str], msgspec.Meta(description="JSONL file of each split")]
    image_dirs: ImageDirs
    label_map: Annotated[
        str | None, msgspec.Meta(description="JSON file {label: category name}; the labels become category ids")
    ] = None
    grounding: Annotated[
        Literal["categories", "phrases"],
        msgspec.Meta(
            description="what the phrases of grounding lines are: `categories` of their boxes, or `phrases`, which are "
            "asked for one by one; then every box has the category `object`, and a region with `bbox: []` is a phrase "
            "that describes nothing in the image"
        ),
    ] = "categories"


class _Detection(msgspec.Struct):
    instances: list[Any] = []


class _Grounding(msgspec.Struct):
    regions: list[Any] = []
    caption: str = ""


class _Line(msgspec.Struct):
    filename: str
    width: int
    height: int
    detection: _Detection | None = None
    grounding: _Grounding | None = None


class _Instance(msgspec.Struct):
    bbox: Any
    label: int | None = None
    category: str | None = None


class _Region(msgspec.Struct):
    bbox: Any
    phrase: str


@FORMATS.register("odvg")
class OdvgFormat(AnnotationFileFormat[OdvgOptions]):
    """Boxes are x1, y1, x2, y2 in pixels. A phrase of a grounding line is a category; a region has several boxes."""

    Options = OdvgOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """JSONL files whose lines have `filename` and `detection` or `grounding`, and a label map if there is one."""
        found: dict[str, str] = {}
        for path in listing.with_suffix(".jsonl", ".json"):
            line = listing.first_json(path)
            if isinstance(line, dict) and "filename" in line and ({"detection", "grounding"} & set(line)):
                found[path] = str(line["filename"])
        maps = [path for path in listing.with_suffix(".json") if "label_map" in path]
        proposals = []
        for files in group_by_split(found):
            folders = {split: listing.folders_of_images([found[path]], path) for split, path in files.items()}
            for label_map in maps or [None]:
                named = {"label_map": label_map} if label_map else {}
                evidence = ", ".join([*files.values(), *named.values()])
                proposals.append(
                    Proposal(options={"annotations": files, "image_dirs": folders, **named}, evidence=evidence)
                )
        return proposals

    def files(self, split: str) -> SplitFiles:
        """The JSONL file, the label map, and the folders of images of `split`."""
        own, label_map = super().files(split), self.options.label_map
        return own._replace(annotations=(*own.annotations, label_map)) if label_map else own

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file of all lines."""
        file, target = folder / self.options.annotations[split], self.annotation_path(split, raw_dir)
        image_dirs = [folder / name for name in self.options.image_dirs[split]]
        with EntryWriter(target, file, image_dirs, self._categories(folder), self.options) as writer:
            for number, value in writer.json_lines():
                with writer.skipping("image", number):
                    self._line(writer, number, convert_entry(value, _Line))
        return self.source(split, target, image_dirs)

    def _categories(self, folder: Path) -> Categories:
        if self.options.label_map is None:
            names = self.options.categories
            if names is not None and self.options.grounding == "phrases" and GROUNDED not in names:
                names = (*names, GROUNDED)
            return declared_categories(names)
        if self.options.categories is not None:
            field = f"datasets.{self.dataset}"
            raise ConfigError(located("`label_map` and `categories` are mutually exclusive", field=field))
        labels = read_label_map(folder / self.options.label_map)
        if self.options.grounding == "phrases" and GROUNDED not in labels.values():
            labels[max(labels) + 1] = GROUNDED
        return Categories(labels)

    def _line(self, writer: EntryWriter, number: int, line: _Line) -> None:
        if (line.detection is None) == (line.grounding is None):
            raise BadItem("invalid entry", "expected one of `detection` and `grounding`")
        image = writer.image(line.filename, "filename", line.width, line.height)
        if line.detection is not None:
            for k, item in enumerate(line.detection.instances):
                with writer.skipping("annotation", number):
                    self._instance(writer, image, number, item, f"detection.instances[{k}]")
            writer.write(image)
        elif line.grounding is not None:
            read = self._phrase if self.options.grounding == "phrases" else self._region
            for k, item in enumerate(line.grounding.regions):
                read(writer, image, number, item, f"grounding.regions[{k}]")
            writer.write(image, caption=line.grounding.caption)

    def _instance(self, writer: EntryWriter, image: Image, number: int, item: object, field: str) -> None:
        instance, table = convert_entry(item, _Instance, field), writer.categories
        if self.options.label_map is None or instance.label is None:
            category_id = table.by_name(instance.category, f"{field}.category")
        else:
            category_id = table.by_number(instance.label, f"{field}.label", first=1)
        if instance.category is not None and instance.category != table.table[category_id]:
            both = (
                f"label {instance.label} is {shown(table.table[category_id])}, category is {shown(instance.category)}"
            )
            raise BadItem("label and category differ", f"{field}: {both}")
        writer.add_box(image, number, category_id, instance.bbox, _unit(image), f"{field}.bbox")

    def _region(self, writer: EntryWriter, image: Image, number: int, item: object, field: str) -> None:
        with writer.skipping("annotation", number):
            region = convert_entry(item, _Region, field)
            category_id = writer.categories.by_name(region.phrase, f"{field}.phrase")
            for box in _boxes(region.bbox):
                with writer.skipping("annotation", number):
                    writer.add_box(image, number, category_id, box, _unit(image), f"{field}.bbox")

    def _phrase(self, writer: EntryWriter, image: Image, number: int, item: object, field: str) -> None:
        """Add a region as a phrase, unless one of its boxes is bad."""
        before = len(image.boxes)
        with writer.skipping("phrase", number):
            region = convert_entry(item, _Region, field)
            category_id = writer.categories.by_name(GROUNDED, field)
            for box in [] if region.bbox == [] else _boxes(region.bbox):
                writer.add_box(image, number, category_id, box, _unit(image), f"{field}.bbox")
            writer.add_phrase(image, region.phrase, range(before, len(image.boxes)), f"{field}.phrase")


def read_label_map(path: Path) -> dict[int, str]:
    """{label: name} of a label map; DataError with the entry that is wrong."""
    fix = 'write it as {"0": "first category", "1": "second category"}'
    try:
        content = json.loads(path.read_bytes().removeprefix(BOM_UTF8).decode(), object_pairs_hook=list)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(located(f"not a label map: {error}", file=path, fix=fix)) from error
    if not isinstance(content, list) or not content or not all(isinstance(pair, tuple) for pair in content):
        raise DataError(
            located("expected an object that maps labels to names", file=path, found=shown(content), fix=fix)
        )
    labels: dict[int, str] = {}
    for key, name in content:
        if not (key.isascii() and key.isdigit() and len(key) < 16):
            raise DataError(located("expected a numeric label", file=path, field=shown(key), fix=fix))
        if not isinstance(name, str) or not name.strip() or "<|" in name:
            raise DataError(located("expected a category name", file=path, field=key, found=shown(name), fix=fix))
        if name in labels.values() or int(key) in labels:
            problem = "two labels have the same name" if name in labels.values() else "the label is repeated"
            raise DataError(located(problem, file=path, field=key, found=name, fix="give each label a unique name"))
        labels[int(key)] = name
    return labels


def _boxes(value: object) -> list[Any]:
    """The boxes of a region, which has one box or a list of them."""
    return value if isinstance(value, list) and value and isinstance(value[0], list) else [value]


def _unit(image: Image) -> Unit:
    return Unit.of(image, "xyxy", "pixels")
