"""What the formats of annotation files share: lines of text, numbers, boxes, image files and category names.

A problem of one item of the user's files is a `BadItem`; the format reports it to `AnnotationWriter.skip`, with its
file. A problem of a whole file is a DataError.
"""

from __future__ import annotations

import math
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.folder_listing import IMAGE_SUFFIXES
from coordexp.datasets.images import ImageError, upright_size
from coordexp.runtime.errors import DataError, located

BoxKind = Literal["xyxy", "xywh", "cxcywh"]
Units = Literal["pixel", "normalised"]
TOLERANCE = 0.01  # normalised coordinates may exceed 0..1 by this much, because of rounding; boxes are clipped later
MAX_SIDE = 1_000_000  # pixels
_FIX_ENCODING = "convert the file to UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW"


class BadItem(Exception):
    """An image or annotation that cannot be used: a short reason, which is counted, and the details."""

    def __init__(self, reason: str, detail: str = "", line: int | None = None):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.line = reason, detail, line


class ImageFile(NamedTuple):
    """An image of the dataset: path relative to its folder, width and height in pixels (upright)."""

    name: str
    width: int
    height: int


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file in UTF-8 with their numbers from 1, without line ends and byte-order mark.

    BadItem for a line in another encoding, or for a file that cannot be read.
    """
    try:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                if number == 1:
                    raw = raw.removeprefix(BOM_UTF8)  # noqa: PLW2901
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    detail = f"byte 0x{raw[error.start]:02x}; {_FIX_ENCODING}"
                    raise BadItem("not UTF-8", detail, number) from error
                if "\0" in text:
                    raise BadItem("not a text file", "a zero byte", number)
                yield number, text.rstrip("\r\n")
    except OSError as error:
        raise BadItem("unreadable file", error.strerror or str(error)) from error


def whole_file_error(path: Path, error: BadItem, fix: str | None = None) -> DataError:
    """The DataError for a file that nothing can be read without, such as the list of a split."""
    problem = f"{error.reason}: {error.detail}" if error.detail else error.reason
    return DataError(located(problem, file=path, line=error.line, fix=fix))


def finite_numbers(texts: Sequence[str]) -> list[float]:
    """The values of decimal numbers; BadItem for text, and for NaN and infinite numbers."""
    try:
        values = [float(text) for text in texts]
    except ValueError as error:
        raise BadItem("not a number", f"found {list(texts)}") from error
    if any("_" in text for text in texts):  # Python accepts 1_000
        raise BadItem("not a number", f"found {list(texts)}")
    if not all(map(math.isfinite, values)):
        raise BadItem("non-finite number", f"found {list(texts)}")
    return values


def pixel_box(values: Sequence[float], kind: BoxKind, units: Units, size: tuple[int, int]) -> list[float]:
    """A box as [x, y, width, height] in pixels of an image of `size` (width, height).

    BadItem if corners are swapped, if normalised values are not within 0..1, or if the box lies outside the image. A
    box without area is returned: the conversion skips and counts it.
    """
    a, b, c, d = values
    if kind != "xyxy" and (c < 0 or d < 0):
        raise BadItem("negative size", f"expected a width and height of at least 0, found {list(values)}")
    if units == "normalised":
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):
            raise BadItem("not normalised", f"expected values within 0..1, found {list(values)}")
        a, b, c, d = a * size[0], b * size[1], c * size[0], d * size[1]
    if kind == "xyxy":
        c, d = c - a, d - b
        if c < 0 or d < 0:
            raise BadItem("swapped corners", f"expected x1 <= x2 and y1 <= y2, found {list(values)}")
    if kind == "cxcywh":
        a, b = a - c / 2, b - d / 2
    if c and d and (a >= size[0] or b >= size[1] or a + c <= 0 or b + d <= 0 or max(c, d) > MAX_SIDE):
        raise BadItem("box outside the image", f"{list(values)} in {size[0]}x{size[1]}")
    return [a, b, c, d]


def polygon_box(points: Sequence[float]) -> list[float]:
    """Bounds [x, y, width, height] of a flat polygon."""
    x, y = min(points[::2]), min(points[1::2])
    return [x, y, max(points[::2]) - x, max(points[1::2]) - y]


def polygon_area(points: Sequence[float]) -> float:
    """Area of a flat polygon (shoelace formula)."""
    x, y = points[::2], points[1::2]
    return abs(sum(x[n - 1] * y[n] - x[n] * y[n - 1] for n in range(len(x)))) / 2


def relative_name(text: str) -> str:
    """A path inside a folder with forward slashes; BadItem for a path that is absolute or leaves the folder."""
    name = text.strip().replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        raise BadItem("no file name", f"found {text!r}")
    if name.startswith("/") or ":" in parts[0] or ".." in parts or "\0" in name:
        raise BadItem(
            "path outside the folder", f"expected a relative path inside the dataset's folder, found {text!r}"
        )
    return "/".join(parts)


class ImageFolder:
    """Finds images below a folder by name, and reads their sizes from the headers."""

    def __init__(self, root: Path):
        self.root = root

    def find(self, text: str) -> ImageFile:
        """The image of this path, with any case of its suffix; BadItem if it is missing or cannot be read."""
        return self.measure(self.locate(text))

    def locate(self, text: str) -> str:
        """The path of the image with this name, with any case of its suffix; BadItem if it is missing."""
        name = relative_name(text)
        if os.path.isfile(f"{self.root}/{name}"):
            return name
        folder, _, last = name.rpartition("/")
        stem, suffix = os.path.splitext(last)
        others = [n for n in self._by_stem(folder).get(stem, []) if n.lower() == f"{stem}{suffix}".lower()]
        if len(others) != 1:
            raise BadItem("missing image", f"{name} not found in {self.root}")
        return f"{folder}/{others[0]}".removeprefix("/")

    def locate_stem(self, text: str) -> str:
        """The path of the image with this name, without suffix; BadItem if there is none, or more than one."""
        name = relative_name(text)
        folder, _, stem = name.rpartition("/")
        names = self._by_stem(folder).get(stem, [])
        if not names:
            raise BadItem("missing image", f"{name} with any suffix not found in {self.root}")
        if len(names) > 1:
            raise BadItem("ambiguous image", f"several images have this name: {', '.join(names)}")
        return f"{folder}/{names[0]}".removeprefix("/")

    def measure(self, name: str) -> ImageFile:
        """The image with this path, which exists; its size is that of the upright image."""
        check_utf8(name)
        try:
            return ImageFile(name, *upright_size(f"{self.root}/{name}"))
        except ImageError as error:
            raise BadItem(error.reason, str(error)) from error

    @lru_cache(maxsize=2)  # noqa: B019 -- of a folder or two, for one split
    def _by_stem(self, folder: str) -> Mapping[str, list[str]]:
        names: dict[str, list[str]] = {}
        try:
            found = sorted(os.listdir(self.root / folder))
        except OSError:
            return names
        for name in found:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                names.setdefault(stem, []).append(name)
        return names


def check_utf8(name: str) -> None:
    """BadItem for the name of a file that a JSON file cannot hold."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise BadItem("file name is not UTF-8", repr(name))


def numbered_categories(
    names: Iterable[str], file: str | Path | None, field: str, lines: Sequence[int | None] = ()
) -> list[dict[str, Any]]:
    """Entries of `categories` with ids from 1; DataError for an empty or repeated name, or for none at all.

    Names that differ in case or spaces only are repeated: a prompt or an answer could not tell them apart.
    """
    categories: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        line = lines[index] if index < len(lines) else None
        key = " ".join(name.replace("_", " ").split()).casefold()
        where = {"file": file, "line": line, "field": f"{field}[{index}]"}
        if not key:
            raise DataError(located("the category has no name", **where, fix="name every category"))
        if key in seen:
            problem = f"two categories have the same name: {seen[key]!r} and {name!r}"
            raise DataError(located(problem, **where, fix="rename one of them, or merge the two"))
        seen[key] = name
        categories.append({"id": index + 1, "name": name})
    if not categories:
        raise DataError(located("no categories", file=file, field=field, expected="at least one name"))
    return categories


class BoxWriter(AnnotationWriter):
    """An AnnotationWriter that numbers images and annotations from 1 in the order in which they are added."""

    def image(self, image: ImageFile, **entry: Any) -> int:
        """Add an image; returns its id."""
        image_id = self.image_count + 1
        self.add_image({"id": image_id, "file_name": image.name, "width": image.width, "height": image.height, **entry})
        return image_id

    def box(self, image_id: int, category_id: int, box: Sequence[float], iscrowd: bool = False, **entry: Any) -> None:
        """Add a box [x, y, width, height] in pixels."""
        ids = {"id": self.annotation_count + 1, "image_id": image_id, "category_id": category_id}
        self.add_annotation({**ids, "bbox": list(box), "area": box[2] * box[3], "iscrowd": int(iscrowd), **entry})

    def skip_item(self, kind: Literal["image", "annotation"], file: str | Path, bad: BadItem, line: int | None = None):
        """Leave out an item, with its file and line. As with `skip`, the end of the block raises, not this call."""
        shown = os.fsencode(file).decode("utf-8", "replace")
        self.skip(kind, bad.reason, shown, bad.line if bad.line is not None else line, bad.detail)


def image_names(folder: Path) -> Iterator[str]:
    """Paths of the images below a folder, relative to it, in order; hidden files and folders are left out."""
    return file_names(folder, IMAGE_SUFFIXES)


def file_names(folder: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Paths of the files below a folder with one of these suffixes in any case, relative to it, in order."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in found:
        if is_folder:
            yield from (f"{name}/{below}" for below in file_names(folder / name, suffixes))
        elif os.path.splitext(name)[1].lower() in suffixes:
            yield name
