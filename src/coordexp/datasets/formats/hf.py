"""Hugging Face datasets that `Dataset.save_to_disk` wrote: Arrow files, read without running code of the dataset."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, DatasetFormat, PerSplit, Proposal, SplitFiles
from coordexp.datasets.formats.entries import Categories, EntryWriter, declared_categories, shown
from coordexp.datasets.formats.imagefolder import ObjectsOptions, add_objects
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.images import ImageError, open_image
from coordexp.datasets.source import Source
from coordexp.runtime.errors import ConfigError, DataError, located
from coordexp.runtime.io import atomic_dir, read_json

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}


class HfOptions(ObjectsOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a Hugging Face dataset on disk; paths are relative to its folder."""

    folders: Annotated[
        PerSplit[str],
        msgspec.Meta(description="folder of each split; for a saved DatasetDict, its subfolders, such as `validation`"),
    ]
    category_key: Annotated[str, msgspec.Meta(description="key of the categories in the objects column")] = "category"
    image_column: Annotated[str, msgspec.Meta(description="column of the images")] = "image"
    objects_column: Annotated[str, msgspec.Meta(description="column of the objects")] = "objects"


@FORMATS.register("hf")
class HfFormat(DatasetFormat[HfOptions]):
    """Boxes have the declared form and unit. Category numbers are indices into the ClassLabel or `categories`."""

    Options = HfOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """Folders that `save_to_disk` wrote: each has a `state.json` beside its `dataset_info.json`."""
        folders = [path.rpartition("/")[0] or "." for path in listing.files if path.rpartition("/")[2] == "state.json"]
        infos = {path.rpartition("/")[0] or "." for path in listing.files if path.endswith("dataset_info.json")}
        kinds = group_by_split(folder for folder in folders if folder in infos)
        return [Proposal(options={"folders": files}, evidence=", ".join(files.values())) for files in kinds]

    def files(self, split: str) -> SplitFiles:
        """The folder of `split`."""
        return SplitFiles((self.options.folders[split],))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file, and the images as files named by their row."""
        path, target, images = (
            folder / self.options.folders[split],
            self.annotation_path(split, raw_dir),
            raw_dir / "images",
        )
        rows = self._load(path)
        with atomic_dir(images / split) as scratch:
            categories = self._categories(rows.features)
            with EntryWriter(target, path, [scratch], categories, self.options) as writer:
                for number, row in enumerate(self._rows(rows, path), start=1):
                    writer.count_entry()
                    with writer.skipping("image", number):
                        name = _write_image(row[self.options.image_column], scratch, number, self.options.image_column)
                        image = writer.image(name, self.options.image_column)
                        objects = row[self.options.objects_column]
                        add_objects(writer, image, number, objects, self.options, self.options.objects_column)
                        writer.write(image)
        return self.source(split, target, [images / split])

    def _load(self, path: Path) -> Any:
        """The dataset, with images as they are stored; DataError if the folder is not one."""
        library = _library(self.dataset)
        _check_folder(path)
        try:
            rows = library.load_from_disk(str(path)).with_format(None)
            rows.data.validate(full=True)  # pyarrow does not check offsets when it reads values: it would crash
        except Exception as error:  # whatever the library and pyarrow raise for damaged files
            raise DataError(
                located(f"not a dataset: {type(error).__name__}: {shown(str(error))}", file=path)
            ) from error
        for field, name in (
            ("image_column", self.options.image_column),
            ("objects_column", self.options.objects_column),
        ):
            if name not in rows.column_names:
                option = f"datasets.{self.dataset}.{field}"
                raise ConfigError(located("no such column", field=option, expected=rows.column_names, found=name))
        if isinstance(rows.features[self.options.image_column], library.Image):
            return rows.cast_column(self.options.image_column, library.Image(decode=False))
        raise DataError(located(f"column {self.options.image_column!r} does not hold images", file=path))

    def _rows(self, rows: Any, path: Path) -> Iterator[dict[str, Any]]:
        columns = [self.options.image_column, self.options.objects_column]
        try:
            yield from rows.select_columns(columns)
        except Exception as error:  # as in _load
            raise DataError(located(f"damaged rows: {type(error).__name__}: {shown(str(error))}", file=path)) from error

    def _categories(self, features: Any) -> Categories:
        """The names of the option `categories` or else of the ClassLabel of the objects."""
        if self.options.categories is not None:
            return declared_categories(self.options.categories)
        names = _class_names(features[self.options.objects_column], self.options.category_key)
        return declared_categories(names)


def _class_names(feature: Any, key: str) -> tuple[str, ...] | None:
    """The names of the ClassLabel under `key` in a (list of) struct(s) of features; None if it has none."""
    while not isinstance(feature, dict):
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
        if inner is None:
            return None
        feature = inner
    label = feature.get(key)
    while not hasattr(label, "names"):
        label = label[0] if isinstance(label, list) and label else getattr(label, "feature", None)
        if label is None:
            return None
    return tuple(label.names)


def _library(dataset: str) -> ModuleType:
    try:
        return importlib.import_module("datasets")  # optional: no environment of the workflow has it
    except ImportError as error:
        fix = "pip install datasets"
        raise ConfigError(
            located("the format hf requires the `datasets` library", field=f"datasets.{dataset}", fix=fix)
        ) from error


def _check_folder(path: Path) -> None:
    """DataError unless the folder holds one dataset whose files lie in the folder itself."""
    if (path / "dataset_dict.json").is_file():
        listed = read_json(path / "dataset_dict.json")
        splits = listed.get("splits") if isinstance(listed, dict) else None
        fix = "name the folder of one split"
        raise DataError(located("the folder holds several splits", file=path, expected=splits, fix=fix))
    state = read_json(path / "state.json")
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise DataError(located("expected a list of files", file=path / "state.json", field="_data_files"))
    for file in files:
        name = file.get("filename")
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            expected = "the name of a file in this folder"
            facts = {"field": "_data_files", "expected": expected, "found": shown(name)}
            raise DataError(located("missing file, or file outside the folder", file=path / "state.json", **facts))


def _write_image(value: Any, folder: Path, number: int, field: str) -> str:
    """Write the bytes of an image to a file named by its row; returns the name."""
    data = value.get("bytes") if isinstance(value, dict) else None
    if not data or not isinstance(data, bytes):
        path = value.get("path") if isinstance(value, dict) else value
        raise BadItem("missing image", f"{field}: expected embedded bytes, found {shown(path)}")
    try:
        with open_image(BytesIO(data)) as image:
            kind = str(image.format)
    except ImageError as error:
        raise BadItem(error.reason, f"{field}: {error}") from None
    name = f"{number:09d}{_SUFFIXES.get(kind, f'.{kind.lower()}')}"
    (folder / name).write_bytes(data)
    return name
