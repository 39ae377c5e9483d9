"""PASCAL VOC: one XML file per image (Everingham et al., 2010)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordexp.datasets.folder_listing import ROLES, FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, ConvertedOptions, DatasetFormat, PerSplit, Proposal, SplitFiles
from coordexp.datasets.formats.reading import (
    BadItem,
    BoxWriter,
    ImageFile,
    ImageFolder,
    file_names,
    finite_numbers,
    image_names,
    numbered_categories,
    pixel_box,
    relative_name,
    text_lines,
    whole_file_error,
)
from coordexp.datasets.formats.voc_xml import VocFile, VocObject, read_voc_file
from coordexp.datasets.source import Source

_FLAG = re.compile(r"\s+-?[01]$")  # the lists of one class say whether an image shows it
_LISTS = {"train.txt": "train", "trainval.txt": "trainval", "val.txt": "val", "valid.txt": "val", "test.txt": "test"}
_NAME = re.compile(rb"<object>.*?<name>([^<]*)</name>", re.DOTALL)
_LOW_CORNER = re.compile(rb"<[xy]min>\s*(-?[0-9.]+)\s*</[xy]min>")
_TRUTH = {"": False, "0": False, "1": True, "false": False, "true": True}


class VocOptions(ConvertedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in VOC format; paths are relative to its folder."""

    splits: Annotated[
        PerSplit[str],
        msgspec.Meta(
            description="for each split, a list of image names without suffix (`ImageSets/Main/train.txt`) or a folder "
            "of XML files"
        ),
    ]
    categories: Annotated[
        tuple[str, ...], msgspec.Meta(description="category names, in the order of their ids, starting at 1")
    ]
    one_based: Annotated[
        bool,
        msgspec.Meta(
            description="true: coordinates are pixel indices starting at 1, and xmax and ymax are the last pixels of "
            "the object, as in PASCAL VOC itself; false: coordinates of the box's edges, starting at 0, as most "
            "annotation tools write them"
        ),
    ]
    annotations: Annotated[
        str, msgspec.Meta(description="folder of the XML files, if `splits` names lists of images")
    ] = "Annotations"
    images: Annotated[
        str | None, msgspec.Meta(description="folder of the images; null: the folder of the XML files")
    ] = "JPEGImages"
    difficult: Annotated[
        Literal["ignore", "keep"],
        msgspec.Meta(
            description="objects marked as difficult: `ignore` makes them iscrowd, so that they count neither as "
            "missed objects nor as false positives; `keep` treats them as ordinary objects"
        ),
    ] = "ignore"


def _names_and_smallest(listing: FolderListing, files: Sequence[str]) -> tuple[list[str], float]:
    """Category names in the files, sorted, and the smallest left or upper coordinate of a box, at most 1."""
    names, smallest = set(), 1.0
    for path in files:
        text = (listing.root / path).read_bytes()
        names.update(name.decode("utf-8", "replace").strip() for name in _NAME.findall(text))
        smallest = min([smallest, *map(float, _LOW_CORNER.findall(text))])
    return sorted(names - {""}), smallest


@FORMATS.register("voc")
class VocFormat(DatasetFormat[VocOptions]):
    """XML files in one folder with lists of the splits, or in one folder per split."""

    Options = VocOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """XML files with objects, and lists of the splits or one folder per split.

        The files do not say whether pixels are counted from 1, unless a coordinate is 0.
        """
        files = [path for path in listing.with_suffix(".xml") if b"<annotation" in listing.head(path, 512)]
        if not files:
            return []
        names, smallest = _names_and_smallest(listing, files)
        folders = list(dict.fromkeys(path.rpartition("/")[0] or "." for path in files))
        lists = {_LISTS.get(path.rpartition("/")[2]): path for path in listing.files if "ImageSets/" in path}
        if "train" not in lists and "trainval" in lists:
            lists = {"train": lists["trainval"], "test": lists.get("test")}
        found = {split: lists[split] for split in ROLES if lists.get(split)}
        shown = [f"{Path(path).stem}{suffix}" for path in files[:50] for suffix in (".jpg", ".jpeg", ".png")]
        images = listing.folders_of_images(shown)
        options: dict[str, Any] = {"categories": names, "annotations": folders[0] if found else "Annotations"}
        options["images"] = images[0] if images and images[0] not in folders else None
        return [
            Proposal(
                options={"splits": splits, **options, "one_based": one_based},
                evidence=f"{', '.join(splits.values())}; one_based: {str(one_based).lower()}",
            )
            for splits in ([found] if found else group_by_split(folders))
            for one_based in ((True, False) if smallest >= 1 else (False,))
        ]

    def files(self, split: str) -> SplitFiles:
        """The list and the folder of all XML files, or the folder of those of the split; and the folder of images."""
        source = self.options.splits[split]
        annotations = (source, self.options.annotations) if source.lower().endswith(".txt") else (source,)
        return SplitFiles(annotations, (self.options.images or annotations[-1],))

    def original_files(self, split: str, folder: Path) -> Sequence[Path]:
        """The list and the XML files, without images in the same folder."""
        names = self.files(split)
        paths = [folder / name for name in names.annotations]
        if names.annotations[-1] == names.image_dirs[0] and paths[-1].is_dir():
            paths[-1:] = [paths[-1] / name for name in file_names(paths[-1], frozenset((".xml",)))]
        return paths

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """Convert the XML files of `split`."""
        names = self.files(split)
        categories = numbered_categories(self.options.categories, None, f"datasets.{self.dataset}.categories")
        images = folder / names.image_dirs[0]
        with BoxWriter(self.annotation_path(split, raw_dir), self.options.on_bad) as writer:
            writer.set_categories(categories)
            conversion = _Conversion(folder / names.annotations[-1], images, categories, self.options, writer)
            if len(names.annotations) > 1:
                conversion.add_list(folder / names.annotations[0])
            else:
                conversion.add_folder()
        return self.source(split, writer.path, [images])


class _Conversion:
    """Writes the images and boxes of one split, from the XML files in the folder `annotations`."""

    def __init__(
        self, annotations: Path, images: Path, categories: list[dict[str, Any]], options: VocOptions, writer: BoxWriter
    ):
        self.annotations, self.options, self.writer = annotations, options, writer
        self.folder = ImageFolder(images)
        self.category_ids = {category["name"]: category["id"] for category in categories}
        self.owners: dict[str, str] = {}  # annotation file by image
        self.names: set[str] = set()  # annotation files read

    def add_list(self, path: Path) -> None:
        """Add the images that a list names."""
        try:
            for line, text in _listed(path, self.annotations):
                try:
                    name = relative_name(text)
                    if name in self.names:
                        raise BadItem("image listed twice", name)
                    self.names.add(name)
                    self.add(name, self._annotation_file(name))
                except BadItem as error:
                    self.writer.skip_item("image", path, error, line)
        except BadItem as error:
            raise whole_file_error(path, error) from error

    def add_folder(self) -> None:
        """Add the images of all annotation files in the folder, and count the images without one."""
        names = list(file_names(self.annotations, frozenset((".xml",))))
        stems = Counter(os.path.splitext(name)[0] for name in names)
        for name in names:
            stem = os.path.splitext(name)[0]
            if stems[stem] > 1:
                error = BadItem("two annotation files for one image", f"{stem} with different suffixes")
                self.writer.skip_item("image", self.annotations / name, error)
            else:
                self.add(stem, self.annotations / name)
        if self.options.images is None:
            for name in image_names(self.annotations):
                if name not in self.owners and os.path.splitext(name)[0] not in stems:
                    error = BadItem("missing annotation", "the image has no XML file")
                    self.writer.skip_item("image", self.annotations / name, error)

    def add(self, name: str, path: Path) -> None:
        """Add the image `name` (without suffix) with the objects in its annotation file."""
        try:
            file = read_voc_file(path)
        except BadItem as error:
            self.writer.skip_item("image", path, error)
            return
        try:
            image = self._image(name, file)
            if (other := self.owners.setdefault(image.name, name)) != name:
                raise BadItem("two annotation files for one image", f"{other}.xml and {name}.xml name {image.name}")
        except BadItem as error:
            self.writer.skip_item("image", path, error)
            for item in file.objects:
                self.writer.skip_item("annotation", path, BadItem("image skipped"), item.line)
            return
        image_id = self.writer.image(image)
        for item in file.objects:
            try:
                self._add_object(item, image, image_id)
            except BadItem as error:
                self.writer.skip_item("annotation", path, error, item.line)

    def _annotation_file(self, name: str) -> Path:
        for suffix in (".xml", ".XML"):
            path = self.annotations / f"{name}{suffix}"
            if os.path.isfile(path):
                return path
        raise BadItem("missing annotation", f"{name}.xml not found in {self.annotations}")

    def _image(self, name: str, file: VocFile) -> ImageFile:
        """The image that the file names, or else the one that is called like the file itself."""
        path = self._image_path(name, file.texts.get("filename", ""))
        size = file.size()
        return ImageFile(path, *size) if size else self.folder.measure(path)

    def _image_path(self, name: str, named: str) -> str:
        folder = os.path.dirname(name)
        usual = f"{name}.jpg"
        if os.path.basename(usual) == named and os.path.isfile(self.folder.root / usual):
            return usual
        try:
            by_name = self.folder.locate(f"{folder}/{named}" if folder else named) if named.strip() else None
        except BadItem:
            by_name = None
        try:
            by_stem = self.folder.locate_stem(name)
        except BadItem:
            if by_name is None:
                raise
            return by_name
        if by_name and os.path.splitext(by_name)[0] != os.path.splitext(by_stem)[0]:
            raise BadItem("ambiguous image", f"filename is {named!r}, but {by_stem} exists too")
        return by_name or by_stem

    def _add_object(self, item: VocObject, image: ImageFile, image_id: int) -> None:
        category = item.texts.get("name", "")
        if category not in self.category_ids:
            raise BadItem("unknown category", f"expected one of {sorted(self.category_ids)[:20]}, found {category!r}")
        corners = finite_numbers(item.corners())
        if self.options.one_based:
            if min(corners) < 1:
                detail = f"expected pixel indices from 1, found {corners}; coordinates from 0 need `one_based: false`"
                raise BadItem("coordinate below 1", detail)
            x1, y1, x2, y2 = corners  # equal corners are a point without area, not a pixel
            corners = [x1 - (x1 < x2), y1 - (y1 < y2), x2, y2]
        difficult = item.texts.get("difficult", "").lower()
        if difficult not in _TRUTH:
            raise BadItem("invalid value of difficult", f"expected 0 or 1, found {difficult!r}")
        box = pixel_box(corners, "xyxy", "pixel", (image.width, image.height))
        ignored = _TRUTH[difficult] and self.options.difficult == "ignore"
        self.writer.box(image_id, self.category_ids[category], box, ignored)


def _listed(path: Path, annotations: Path) -> Iterator[tuple[int, str]]:
    """The names in a list with their lines; the flag in a list of one class is left out."""
    for number, line in text_lines(path):
        name = line.strip()
        if name:
            flagged = _FLAG.search(name)
            if flagged and not os.path.isfile(annotations / f"{name}.xml"):
                name = name[: flagged.start()]
            yield number, name
