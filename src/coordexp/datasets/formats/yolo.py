"""YOLO (Ultralytics): a data.yaml, images, and one text file of normalised boxes or polygons per image.

Category ids are the class indices plus one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec
import yaml

from coordexp.datasets.folder_listing import ROLES, FolderListing
from coordexp.datasets.formats.base import FORMATS, ConvertedOptions, DatasetFormat, PerSplit, Proposal, SplitFiles
from coordexp.datasets.formats.data_yaml import DataYaml, read_data_yaml
from coordexp.datasets.formats.reading import (
    TOLERANCE,
    BadItem,
    BoxWriter,
    ImageFile,
    ImageFolder,
    file_names,
    finite_numbers,
    image_names,
    pixel_box,
    polygon_area,
    polygon_box,
    relative_name,
    text_lines,
    whole_file_error,
)
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
NOT_LABELS = frozenset(("classes.txt", "readme.txt", "readme.dataset.txt", "readme.roboflow.txt", "notes.txt"))


class YoloOptions(ConvertedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in YOLO format; paths are relative to its folder."""

    data: Annotated[str, msgspec.Meta(description="YAML file with the classes and the splits")] = "data.yaml"
    splits: Annotated[
        PerSplit[str], msgspec.Meta(description="key of each split in the YAML file, for example `val: valid`")
    ]


@FORMATS.register("yolo")
class YoloFormat(DatasetFormat[YoloOptions]):
    """Ultralytics' format for detection and segmentation; from labels with keypoints, the boxes are read."""

    Options = YoloOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """YAML files with `names` and the splits."""
        proposals = []
        for path in listing.with_suffix(".yaml", ".yml"):
            try:
                content = yaml.safe_load(listing.head(path, 1 << 20))
            except yaml.YAMLError:
                continue
            if isinstance(content, dict) and "names" in content:
                keys = {_SPLITS[key]: key for key in reversed(_SPLITS) if content.get(key)}
                splits = {split: keys[split] for split in ROLES if split in keys}
                proposals += [Proposal(options={"data": path, "splits": splits}, evidence=path)] if splits else []
        return proposals

    def files(self, split: str) -> SplitFiles:
        """The YAML file, and its folder, which holds all images."""
        return SplitFiles((self.options.data,), (str(PurePosixPath(self.options.data).parent),))

    def original_files(self, split: str, folder: Path) -> Sequence[Path]:
        """The YAML file, the lists of images, and the folders of labels or, if images are among them, the labels."""
        path = folder / self.options.data
        found = [path]
        try:
            data = read_data_yaml(path, self.options.splits[split])
            for source in data.sources:
                found += _original_files(path.parent, source, data.base)
        except (DataError, BadItem, OSError):  # `provide` reports it
            return [path]
        return found

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """Convert the labels of `split`."""
        path = folder / self.options.data
        data = read_data_yaml(path, self.options.splits[split])
        with BoxWriter(self.annotation_path(split, raw_dir), self.options.on_bad) as writer:
            writer.set_categories(data.categories)
            _Conversion(path.parent, data, writer).run()
        return self.source(split, writer.path, [path.parent])


def label_name(image: str) -> str:
    """The label file of an image, both relative to the dataset's folder: the last folder `images` becomes `labels`."""
    folder, found, name = f"/{image}".rpartition("/images/")
    path = f"{folder}/labels/{name}" if found else f"/{image}"
    return os.path.splitext(path)[0][1:] + ".txt"


class _Conversion:
    """Writes the images and boxes of one split; `root` is the folder of the YAML file."""

    def __init__(self, root: Path, data: DataYaml, writer: BoxWriter):
        self.root, self.data, self.writer = root, data, writer
        self.folder = ImageFolder(root)
        self.owners: dict[str, str] = {}  # first image of each label file
        self.names: set[str] = set()  # images written

    def run(self) -> None:
        for source in self.data.sources:
            path = self.root / source
            if path.is_dir():
                for image in image_names(path):
                    self.add(os.path.normpath(f"{source}/{image}"), path, None)
            else:
                self.add_list(source)
        for source in self.data.sources:
            if (self.root / source).is_dir():
                self.report_labels_without_image(source)

    def add_list(self, source: str) -> None:
        path = self.root / source
        try:
            for line, image in _listed(self.root, source, self.data.base):
                if isinstance(image, BadItem):
                    self.writer.skip_item("image", path, image, line)
                else:
                    self.add(image, path, line)
        except BadItem as error:
            raise whole_file_error(path, error) from error

    def add(self, name: str, file: Path, line: int | None) -> None:
        """Add an image that `file` names: a list at `line`, or the folder that holds the image."""
        label = label_name(name)
        path = self.root / label
        try:
            owner = self.owners.setdefault(label, name)
            if name in self.names:
                raise BadItem("image listed twice", name)
            if owner != name and path.exists():
                raise BadItem("label file shared by two images", f"{label} belongs to {owner} and {name}")
            image = self.folder.find(name)
        except BadItem as error:
            self.writer.skip_item("image", file if line else self.root / name, error, line)
            if error.reason == "missing image":
                self.report_lines(path)
            return
        self.names.add(name)
        self.add_labels(path, image, self.writer.image(image))

    def add_labels(self, path: Path, image: ImageFile, image_id: int) -> None:
        """Add the objects of a label file; an image without one has no objects."""
        if not os.path.lexists(path):
            return
        try:
            for number, line in text_lines(path):
                values = line.split()
                if values:
                    try:
                        self.add_object(values, image, image_id)
                    except BadItem as error:
                        self.writer.skip_item("annotation", path, error, number)
        except BadItem as error:
            self.writer.skip_item("annotation", path, error)

    def add_object(self, values: list[str], image: ImageFile, image_id: int) -> None:
        category_id = _class_index(values[0], len(self.data.categories)) + 1
        numbers = finite_numbers(values[1:])
        expected = self.data.keypoint_values
        count = len(numbers) - expected
        if count == 4:
            box = pixel_box(numbers[:4], "cxcywh", "normalised", image[1:])
            self.writer.box(image_id, category_id, box)
        elif count >= 6 and count % 2 == 0 and not expected:
            polygon = _pixel_polygon(numbers, image[1:])
            entry = {"segmentation": [polygon], "area": polygon_area(polygon)}
            self.writer.box(image_id, category_id, polygon_box(polygon), **entry)
        else:
            usual = f"{4 + expected} numbers" if expected else "4 numbers (box) or x, y of at least 3 points (polygon)"
            detail = f"expected the class index and {usual}, separated by spaces; found {len(values)} values"
            raise BadItem("wrong number of values", detail)

    def report_labels_without_image(self, source: str) -> None:
        """Count the label files next to the images of a folder that belong to none of them."""
        folder = _label_folder(source)
        for name in file_names(self.root / folder, frozenset((".txt",))):
            label = os.path.normpath(f"{folder}/{name}")
            is_list = label in self.data.sources
            if label not in self.owners and not is_list and label.rpartition("/")[2].lower() not in NOT_LABELS:
                self.writer.skip_item(
                    "image", self.root / label, BadItem("missing image", f"no image has the label {label}")
                )
                self.report_lines(self.root / label)

    def report_lines(self, path: Path) -> None:
        """Count the objects of a label file whose image is missing."""
        if not os.path.lexists(path):
            return
        try:
            for number, line in text_lines(path):
                if line.strip():
                    self.writer.skip_item("annotation", path, BadItem("image skipped"), number)
        except BadItem as error:
            self.writer.skip_item("annotation", path, error)


def _class_index(text: str, count: int) -> int:
    [value] = finite_numbers([text])
    if not value.is_integer():
        raise BadItem("class index is not an integer", f"found {text!r}")
    if not 0 <= value < count:
        raise BadItem("unknown class index", f"expected 0 to {count - 1}, found {text}")
    return int(value)


def _pixel_polygon(values: Sequence[float], size: tuple[int, int]) -> list[float]:
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):
        raise BadItem("not normalised", f"expected values within 0..1, found {min(values)} to {max(values)}")
    return [value * size[index % 2] for index, value in enumerate(values)]


def _listed(root: Path, source: str, base: str) -> Iterator[tuple[int, str | BadItem]]:
    """The images in a list, with their lines: paths relative to `root`, or what is wrong with the line.

    `./a.jpg` is relative to the list's folder, any other path to the dataset's folder `base` or, failing that, to the
    list's folder.
    """
    near = os.path.dirname(source) or "."
    absolute = f"{root.resolve()}/"
    for number, line in text_lines(root / source):
        text = line.strip().replace("\\", "/")
        if not text:
            continue
        try:
            if text.startswith(absolute):
                name = relative_name(text.removeprefix(absolute))
            else:
                name, folders = relative_name(text), (near,) if text.startswith("./") else (base, near)
                paths = [os.path.normpath(f"{folder}/{name}") for folder in folders]
                name = next((path for path in paths if os.path.isfile(root / path)), paths[0])
            yield number, name
        except BadItem as error:
            yield number, error


def _label_folder(source: str) -> str:
    """The folder of the labels of the images in the folder `source`."""
    return os.path.dirname(label_name(os.path.normpath(f"{source}/image.jpg"))) or "."


def _original_files(root: Path, source: str, base: str) -> list[Path]:
    """What the labels of a folder or list of images are read from."""
    if (root / source).is_dir():
        folder = _label_folder(source)
        if folder != source and (root / folder).is_dir():
            return [root / folder]
        return [root / folder / name for name in file_names(root / folder, frozenset((".txt",)))]
    labels = {label_name(name) for _, name in _listed(root, source, base) if isinstance(name, str)}
    return [root / source, *(root / label for label in sorted(labels) if (root / label).is_file())]
