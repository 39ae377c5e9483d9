"""CSV: one box per row; the columns are named in the configuration."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import (
    FORMATS,
    ConvertedOptions,
    DatasetFormat,
    ImageDirs,
    PerSplit,
    Proposal,
    SplitFiles,
)
from coordexp.datasets.formats.reading import (
    BadItem,
    BoxKind,
    BoxWriter,
    ImageFile,
    ImageFolder,
    Units,
    finite_numbers,
    numbered_categories,
    pixel_box,
    text_lines,
    whole_file_error,
)
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located

SAMPLE = 50  # images that are looked up to find their folder
_TRUTH = {"": False, "0": False, "-1": False, "1": True, "false": False, "true": True}  # -1: unknown (Open Images)


class CsvColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of the columns."""

    image: Annotated[str, msgspec.Meta(description="path of the image, relative to one of `image_dirs`")] = "image"
    category: Annotated[str, msgspec.Meta(description="name of the category, or its code")] = "category"
    box: Annotated[
        tuple[str, str, str, str], msgspec.Meta(description="the four numbers of a box, in the order given by `box`")
    ]
    crowd: Annotated[
        str | None, msgspec.Meta(description="1 for a box around a group of objects (iscrowd), 0 for other boxes")
    ] = None


class CsvOptions(ConvertedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset of CSV files; paths are relative to its folder."""

    boxes: Annotated[PerSplit[str], msgspec.Meta(description="CSV file of each split")]
    image_dirs: ImageDirs
    columns: Annotated[CsvColumns, msgspec.Meta(description="names of the columns")]
    box: Annotated[
        BoxKind,
        msgspec.Meta(description="meaning of the box columns: two corners; top-left corner and size; centre and size"),
    ]
    units: Annotated[
        Units,
        msgspec.Meta(description="pixel: edges in pixels, starting at 0; normalised: fractions of the image's sides"),
    ]
    categories: Annotated[
        tuple[str, ...] | None, msgspec.Meta(description="category names, in the order of their ids, starting at 1")
    ] = None
    class_descriptions: Annotated[
        str | None,
        msgspec.Meta(
            description="instead of `categories`: headerless CSV file with the code and name of each category"
        ),
    ] = None
    delimiter: Annotated[str, msgspec.Meta(description="column separator", min_length=1, max_length=1)] = ","
    header: Annotated[
        tuple[str, ...] | None, msgspec.Meta(description="column names, if the files have no header row")
    ] = None
    image_suffix: Annotated[str, msgspec.Meta(description="suffix to append to image names, for example `.jpg`")] = ""

    def __post_init__(self) -> None:
        if (self.categories is None) == (self.class_descriptions is None):
            raise ValueError("expected either categories or class_descriptions")
        if self.delimiter in '"\r\n\0':
            raise ValueError(f"not a delimiter: {self.delimiter!r}")
        if not all(self.image_dirs.values()):
            raise ValueError("image_dirs: expected at least one folder")


class _Row(NamedTuple):
    image: str
    category: str
    box: list[str]
    crowd: str


class _Columns(NamedTuple):
    """Columns of a known kind of file: image, category and corners of the box; and their units."""

    image: str
    category: str
    box: tuple[str, str, str, str]
    units: Units


_KNOWN = (
    _Columns("ImageID", "LabelName", ("XMin", "YMin", "XMax", "YMax"), "normalised"),
    _Columns("filename", "class", ("xmin", "ymin", "xmax", "ymax"), "pixel"),
)


def _proposal(listing: FolderListing, files: dict[str, str], known: _Columns) -> Proposal:
    """The options for files with these columns; categories are those of the files, or of Open Images' descriptions."""
    open_images = known.units == "normalised"
    suffix = {"image_suffix": ".jpg"} if open_images else {}
    names: set[str] = set()
    folders: dict[str, list[str]] = {}
    for split, path in files.items():
        images: dict[str, None] = {}
        with (listing.root / path).open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                names.add(row.get(known.category) or "")
                if len(images) < SAMPLE:
                    images[f"{row.get(known.image)}{suffix.get('image_suffix', '')}"] = None
        folders[split] = listing.folders_of_images(images, path) or ["."]
    columns: dict[str, Any] = {"image": known.image, "category": known.category, "box": list(known.box)}
    columns |= {"crowd": "IsGroupOf"} if open_images else {}
    options = {"boxes": files, "image_dirs": folders, "columns": columns, "box": "xyxy", "units": known.units, **suffix}
    described = [path for path in listing.with_suffix(".csv") if open_images and "class-descriptions" in path]
    options |= {"class_descriptions": described[0]} if described else {"categories": sorted(names - {""})}
    return Proposal(options=options, evidence=", ".join(files.values()))


@FORMATS.register("csv")
class CsvFormat(DatasetFormat[CsvOptions]):
    """One box per row; a row whose box and category are empty lists an image without objects."""

    Options = CsvOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """CSV files with the columns of Open Images, or those that Roboflow writes for TensorFlow."""
        found: dict[str, _Columns] = {}
        for path in listing.with_suffix(".csv"):
            first = listing.head(path).decode("utf-8", "replace").lstrip("\ufeff").split("\n", 1)[0]
            columns = {name.strip().strip('"') for name in first.split(",")}
            known = next((known for known in _KNOWN if {*known[:2], *known.box} <= columns), None)
            if known is not None:
                found[path] = known
        return [_proposal(listing, files, found[next(iter(files.values()))]) for files in group_by_split(found)]

    def files(self, split: str) -> SplitFiles:
        """The CSV file of the split, that of the categories, and the folders of images."""
        extra = (self.options.class_descriptions,) if self.options.class_descriptions else ()
        return SplitFiles((self.options.boxes[split], *extra), tuple(self.options.image_dirs[split]))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """Convert the rows of `split`."""
        names, codes = self._categories(folder)
        image_dirs = [folder / name for name in self.options.image_dirs[split]]
        with BoxWriter(self.annotation_path(split, raw_dir), self.options.on_bad) as writer:
            writer.set_categories(names)
            _Conversion(image_dirs, codes, self.options, writer).add_file(folder / self.options.boxes[split])
        return self.source(split, writer.path, image_dirs)

    def _categories(self, folder: Path) -> tuple[list[dict], dict[str, int]]:
        """(entries of `categories`, id by the code or name in the rows)."""
        if self.options.categories is not None:
            names = numbered_categories(self.options.categories, None, f"datasets.{self.dataset}.categories")
            return names, {category["name"]: category["id"] for category in names}
        path = folder / self.options.class_descriptions
        codes: dict[str, int] = {}
        rows = []
        try:
            for line, row in _rows(path, ","):
                if len(row) != 2 or not row[0].strip() or row[0].strip() in codes:
                    raise BadItem("invalid row", f"expected a new code and its name, found {row}", line)
                codes[row[0].strip()] = len(codes) + 1
                rows.append((line, row[1].strip()))
        except BadItem as error:
            raise whole_file_error(path, error) from error
        return numbered_categories([name for _, name in rows], path, "name", [line for line, _ in rows]), codes


class _Conversion:
    """Writes the images and boxes of one split."""

    def __init__(self, image_dirs: list[Path], codes: Mapping[str, int], options: CsvOptions, writer: BoxWriter):
        self.folders = [ImageFolder(folder) for folder in image_dirs]
        self.codes, self.options, self.writer = codes, options, writer
        self.images: dict[str, tuple[int, ImageFile] | None] = {}  # by name in the rows; None for one that is skipped

    def add_file(self, path: Path) -> None:
        """Add the images and boxes of all rows."""
        try:
            rows = _rows(path, self.options.delimiter)
            header = list(self.options.header) if self.options.header else next(rows, (1, None))[1]
            columns = self._columns(path, header)
            for line, values in rows:
                if any(value.strip() for value in values):
                    self.add_row(path, line, values, header, columns)
        except BadItem as error:
            raise whole_file_error(path, error) from error

    def _columns(self, path: Path, header: list[str] | None) -> list[int]:
        """Indices of the columns of image, category, box and crowd."""
        fix = "correct `columns` or `delimiter` of the dataset, or name the columns under `header`"
        if header is None:
            raise DataError(located("the file is empty", file=path, fix="restore the file"))
        header = [name.strip() for name in header]
        names = self.options.columns
        wanted = [names.image, names.category, *names.box, *([names.crowd] if names.crowd else [])]
        missing = [name for name in wanted if header.count(name) != 1]
        if missing:
            facts = {"expected": [f"{name!r} once" for name in missing], "found": header[:30], "fix": fix}
            raise DataError(located("columns are missing or repeated", file=path, line=1, **facts))
        return [header.index(name) for name in wanted]

    def add_row(self, path: Path, line: int, values: list[str], header: list[str], columns: list[int]) -> None:
        """Add the box of a row, and its image if it is new."""
        try:
            if len(values) != len(header):
                raise BadItem("wrong number of columns", f"expected {len(header)}, found {len(values)}")
            name, category, *box = (values[index].strip() for index in columns)
            row = _Row(name, category, box[:4], box[4] if len(box) > 4 else "")
            found = self._image(row.image, path, line)
            if found is None:
                raise BadItem("image skipped")
            if row.category or any(row.box):
                self._add_box(row, *found)
        except BadItem as error:
            self.writer.skip_item("annotation", path, error, line)

    def _image(self, name: str, path: Path, line: int) -> tuple[int, ImageFile] | None:
        if name not in self.images:
            self.images[name] = None
            try:
                image = self._find(name + self.options.image_suffix)
                self.images[name] = (self.writer.image(image), image)
            except BadItem as error:
                self.writer.skip_item("image", path, error, line)
        return self.images[name]

    def _find(self, name: str) -> ImageFile:
        for folder in self.folders[:-1]:
            try:
                return folder.find(name)
            except BadItem as error:
                if error.reason != "missing image":
                    raise
        return self.folders[-1].find(name)

    def _add_box(self, row: _Row, image_id: int, image: ImageFile) -> None:
        if row.category not in self.codes:
            raise BadItem("unknown category", f"found {row.category!r}")
        if row.crowd.lower() not in _TRUTH:
            raise BadItem("invalid value of the crowd column", f"expected 0 or 1, found {row.crowd!r}")
        box = pixel_box(finite_numbers(row.box), self.options.box, self.options.units, (image.width, image.height))
        self.writer.box(image_id, self.codes[row.category], box, _TRUTH[row.crowd.lower()])


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with their (last) lines; BadItem for one that is no CSV."""
    reader = csv.reader((f"{line}\n" for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise BadItem("not CSV", str(error), reader.line_num) from error
        if row is None:
            return
        yield reader.line_num, row
