"""One image of a dataset with its annotations, from records or from files in any dataset format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from coordexp.datasets.annotation_entries import ImageEntry, InvalidElement
from coordexp.datasets.annotation_index import build_index, read_images
from coordexp.datasets.categories import load_categories
from coordexp.datasets.download import provide
from coordexp.datasets.folder_listing import without_split
from coordexp.datasets.formats import FORMATS, known_splits, open_format
from coordexp.datasets.images import ImageError, find_image
from coordexp.datasets.inspect_folder import Choice, choices
from coordexp.datasets.objects import ObjectOptions, build_objects
from coordexp.datasets.source import load_source
from coordexp.records import Object, decode_record, record_problems
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.io import enumerate_lines

ANNOTATION_FOLDERS = ("labels", "annotations")  # folders inside the folder of a dataset
PER_IMAGE = (".txt", ".xml")  # suffixes of annotation files of single images


class AnnotatedImage(NamedTuple):
    """An image file, its size in pixels as annotated, and its objects; `problems` describes invalid annotations."""

    path: Path
    size: tuple[int, int]
    objects: list[Object]
    problems: list[str]


def holds_records(path: Path) -> bool:
    """Whether the first line of a file is a record, by its `coord_space`."""
    return path.suffix == ".jsonl" and any(b'"coord_space"' in line for _, line in islice(enumerate_lines(path), 1))


def from_records(path: Path, index: int) -> AnnotatedImage:
    """The image of record `index` (from 0) of a JSONL file, in any coordinate space."""
    lines = list(enumerate_lines(path))
    if not 0 <= index < len(lines):
        raise _no_image(path, index, len(lines))
    number, line = lines[index]
    record = decode_record(line, path, number)
    problems = [f"{field}: {problem}" for field, problem in record_problems(record)]
    return AnnotatedImage(path.parent / record.images[0], (record.width, record.height), record.objects, problems)


def from_annotations(path: Path, index: int, image_dirs: Sequence[str]) -> AnnotatedImage:
    """Image `index` (from 0) of an annotation file in COCO or LVIS format; image files are in `image_dirs`."""
    found = build_index(path)
    if not 0 <= index < len(found):
        raise _no_image(path, index, len(found))
    names = {category.id: category.name for category in load_categories(path, "skip", found.categories)}
    with open(path, "rb") as handle:
        [image] = read_images(handle.fileno(), found, index, index + 1)
        if isinstance(image, InvalidElement):
            raise DataError(located(image.problem, file=path, field=f"images[{index}]"))
        size = image.width, image.height
        options = ObjectOptions(geometry="poly", round_geometry=False, crowd="keep", poly_max_points=1000)
        batch = build_objects([image], found.annotations_of(index, index + 1), [size], names, options, handle.fileno())
    try:
        folder, inner = find_image(image.path, image_dirs, from_url=not image.file_name)
    except ImageError as error:
        raise DataError(located(str(error), file=path, fix="pass the folder of the images as --images")) from error
    bad = [f"annotation {item.annotation_id}: {item.detail or item.kind}" for item in batch.skipped + batch.bad]
    return AnnotatedImage(Path(image_dirs[folder]) / inner, size, batch.objects[0], bad)


def from_dataset(path: Path, index: int, name: str | None = None, split: str | None = None) -> AnnotatedImage:
    """Image `index` (from 0) of a split of a dataset, whose format is detected.

    path: folder of the dataset, or one of its annotation files, which then selects the split, or
        the image if it is the file of a single one. name: format, if several
    fit. ConfigError that lists the choices if there are several.
    """
    root, choice, splits = _dataset(path, name, split)
    entry = {"format": choice.format, "root": str(root.resolve()), **choice.proposal.options}
    with tempfile.TemporaryDirectory(prefix="coordexp-show-") as scratch:
        manifest = Path(scratch) / "source.json"
        provide("dataset", entry | _lenient(choice.format), splits[0], Path(scratch) / "raw", manifest)
        source = load_source(manifest)
        annotations = manifest.parent / source.annotations
        image_dirs = [str(manifest.parent / folder) for folder in source.image_dirs]
        if path.is_file() and path.suffix.lower() in PER_IMAGE:
            index = _index_of(annotations, path.stem, index)
        return from_annotations(annotations, index, image_dirs)


def _index_of(annotations: Path, stem: str, default: int) -> int:
    """Index of the image that has the name of its own annotation file, or `default`."""
    found = build_index(annotations)
    with annotations.open("rb") as handle:
        images = read_images(handle.fileno(), found, 0, len(found))
    named = [n for n, image in enumerate(images) if isinstance(image, ImageEntry) and Path(image.path).stem == stem]
    return named[0] if named else default


def _dataset(path: Path, name: str | None, split: str | None) -> tuple[Path, Choice, list[str]]:
    """Folder, format and splits of the dataset in a folder, or of the dataset that a file belongs to."""
    for root in [path] if path.is_dir() else reversed(list(_folders_above(path))):
        found = [
            (choice, splits)
            for choice in choices(root, name)
            if (splits := [s for s in _splits(root, choice, path) if split in (None, s)])
        ]
        if len({choice.format for choice, _ in found}) > 1:
            listed = sorted({choice.format for choice, _ in found})
            raise ConfigError(located("several formats can read this", file=path, found=listed, fix="pass --format"))
        if found:
            choice, splits = found[0]
            if len(splits) > 1 and path.is_dir():
                raise ConfigError(
                    located("the dataset has several splits", file=path, found=splits, fix="pass --split")
                )
            return root, choice, splits
    expected = "records, a COCO file, or a dataset of the formats " + ", ".join(FORMATS.names())
    raise DataError(located("no annotations that a format recognises", file=path, expected=expected))


def _folders_above(file: Path) -> Iterator[Path]:
    """The folder of a file, and those above it as far as the names are those of splits or annotation folders."""
    for folder in file.absolute().parents:
        yield folder
        if without_split(folder.name) != "{split}" and folder.name.lower() not in ANNOTATION_FOLDERS:
            return


def _splits(root: Path, choice: Choice, path: Path) -> list[str]:
    """The splits of a dataset; for a file, only those that read it."""
    opened = open_format("dataset", {"format": choice.format, "root": str(root), **choice.proposal.options})
    names = known_splits(opened)
    if path.is_dir():
        return names
    file = path.resolve()
    return [s for s in names if any(file.is_relative_to(p.resolve()) for p in opened.original_files(s, root))]


def _lenient(name: str) -> dict[str, Any]:
    return {"on_bad": "skip"} if "on_bad" in FORMATS[name].Options.__struct_fields__ else {}


def _no_image(path: Path, index: int, count: int) -> DataError:
    return DataError(located("no such image", file=path, field="--index", expected=f"0 to {count - 1}", found=index))
