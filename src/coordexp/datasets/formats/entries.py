"""What formats with one entry per image share: JSON entries, images by name, boxes in declared units, categories.

An entry, or one of its boxes, that cannot be used raises `BadItem`; `EntryWriter` passes it on with file and
line: an error that lists all of them, or counted skips.
"""

from __future__ import annotations

import contextlib
import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from coordexp.datasets.annotation_writer import AnnotationWriter, ItemKind
from coordexp.datasets.categories import pretty
from coordexp.datasets.formats.base import ConvertedOptions
from coordexp.datasets.formats.reading import BadItem, numbered_categories
from coordexp.datasets.images import ImageError, find_image, upright_size
from coordexp.datasets.phrases import phrase_problem
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import NOT_JSON

BoxForm = Literal["xyxy", "xywh"]
BoxUnit = Literal["pixels", "fractions", "norm1000"]
LIMIT = 1e9  # larger coordinates are not plausible in any unit
TOLERANCE = 1e-3  # by which rounded coordinates may exceed the image, as a fraction of its sides
NO_VALUE = object()
_SHOWN = 120  # characters of a value in a message
T = TypeVar("T")


class EntryOptions(ConvertedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of formats with one entry per image."""

    categories: Annotated[
        tuple[str, ...] | None,
        msgspec.Meta(
            description="category names, in the order of their ids; other names are invalid. null: the names in the "
            "files, with ids computed from the names, so that they are the same in every split"
        ),
    ] = None
    repeated_images: Annotated[
        Literal["error", "merge"],
        msgspec.Meta(
            description="several entries for one image: `error` rejects them; `merge` combines their boxes, without "
            "duplicates"
        ),
    ] = "error"


def shown(value: object) -> str:
    """A value as text for a message, shortened and without characters that a terminal or a file cannot hold."""
    text = ascii(value) if not isinstance(value, str) else repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def convert_entry(value: object, kind: type[T], field: str = "") -> T:
    """`value` as a struct; BadItem with the field that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error).replace("$.", f"{field}." if field else "").replace("$", field or "entry")
        raise BadItem("invalid entry", text) from None


class Categories:
    """Category ids by name; ids of names that are not declared are hashes, which all splits have in common.

    table: {id: name} of what the file of one split uses, or of all declared names.
    """

    def __init__(self, declared: Mapping[int, str] | None = None):
        self.declared = dict(declared) if declared is not None else None
        self.table: dict[int, str] = {} if declared is None else dict(declared)
        self._ids = {name: category_id for category_id, name in self.table.items()}
        self._descriptions = {pretty(name): name for name in self._ids}

    def by_name(self, name: object, field: str) -> int:
        """The id of a category name; BadItem if it is unusable or not declared."""
        if not isinstance(name, str) or not name.strip():
            raise BadItem("missing category", f"{field}: expected a name, found {shown(name)}")
        known = self._ids.get(name)
        if known is not None:
            return known
        if self.declared is not None:
            raise BadItem("unknown category", f"{field}: {shown(name)}")
        return self._add(name, field)

    def by_number(self, number: object, field: str, first: int = 0) -> int:
        """The id of a declared category by its number, where that of the id 1 is `first`; BadItem for any other."""
        if self.declared is None:
            raise BadItem("unknown category", f"{field}: {shown(number)} is a number; declare the category names")
        if type(number) is not int or number + 1 - first not in self.declared:
            raise BadItem("unknown category", f"{field}: {shown(number)} is not the number of a category")
        return number + 1 - first

    def _add(self, name: str, field: str) -> int:
        if "<|" in name:
            raise BadItem(
                "invalid category name", f"{field}: {shown(name)} contains '<|', which starts a special token"
            )
        try:
            digest = blake2b(name.encode(), digest_size=8).digest()
        except UnicodeEncodeError:
            raise BadItem("invalid category name", f"{field}: {shown(name)} is not Unicode text") from None
        other = self._descriptions.setdefault(pretty(name), name)
        if other != name:
            raise BadItem("category names collide", f"{field}: {shown(name)} and {shown(other)}")
        category_id = int.from_bytes(digest) >> 12  # 52 bits: exact in every JSON reader
        if self.table.setdefault(category_id, name) != name:
            raise BadItem("category names collide", f"{field}: {shown(name)} and {shown(self.table[category_id])}")
        self._ids[name] = category_id
        return category_id


class Image:
    """An image that was found, and the boxes and phrases of its entry.

    boxes: [(category id, (x, y, width, height) in pixels)]. phrases: [(text, indices of its boxes)].
    """

    def __init__(self, name: str, width: int, height: int, key: bytes):
        self.name, self.width, self.height, self.key = name, width, height, key
        self.boxes: list[tuple[int, tuple[float, ...]]] = []
        self.phrases: list[tuple[str, list[int]]] = []
        self.lost: set[int] = set()


class Unit(NamedTuple):
    """How boxes are written: `form`, and the width and height of the whole image in the unit of the coordinates.

    exact: coordinates outside the image are in another unit. Boxes in pixels may extend beyond it: the conversion clips
    and counts those.
    """

    form: BoxForm
    width: float
    height: float
    exact: bool = True

    @classmethod
    def of(cls, image: Image, form: BoxForm, unit: BoxUnit) -> Unit:
        """The unit of the boxes of an image."""
        if unit == "pixels":
            return cls(form, image.width, image.height, exact=False)
        size = 1.0 if unit == "fractions" else 1000.0
        return cls(form, size, size)


def pixel_box(value: object, unit: Unit, image: Image, field: str) -> tuple[float, ...]:
    """A box as (x, y, width, height) in pixels of the image; BadItem if it is not one in this unit."""
    if not isinstance(value, list | tuple) or len(value) != 4 or any(type(v) not in (int, float) for v in value):
        raise BadItem("invalid box", f"{field}: expected four numbers, found {shown(value)}")
    if not all(-LIMIT <= v <= LIMIT for v in value):
        raise BadItem("non-finite box", f"{field}: expected finite numbers, found {shown(value)}")
    x, y, c, d = value
    w, h = (c - x, d - y) if unit.form == "xyxy" else (c, d)
    if w < 0 or h < 0:
        expected = "x1 <= x2 and y1 <= y2" if unit.form == "xyxy" else "a width and a height that are not negative"
        reason = "swapped corners" if unit.form == "xyxy" else "negative size"
        raise BadItem(reason, f"{field}: expected {expected}, found {shown(value)}")
    if unit.exact:
        for low, high, size in ((x, x + w, unit.width), (y, y + h, unit.height)):
            if low < -TOLERANCE * size or high > (1 + TOLERANCE) * size:
                within = f"x in 0..{unit.width:g} and y in 0..{unit.height:g}"
                raise BadItem("box outside its unit", f"{field}: expected {within}, found {shown(value)}")
        sx, sy = image.width / unit.width, image.height / unit.height
        return x * sx, y * sy, w * sx, h * sy
    return x, y, w, h


class EntryWriter(contextlib.AbstractContextManager):
    """Writes the annotation file of one split from the entries of `file`.

    Ids of images and annotations count from 1 in the order of the entries. A category that loses a box of an image is
    listed as not exhaustively annotated in it.
    """

    def __init__(
        self, target: Path, file: Path, image_dirs: Sequence[Path], categories: Categories, options: EntryOptions
    ):
        self.file, self.categories = file, categories
        self.image_dirs = [str(folder.resolve()) for folder in image_dirs]
        self._merge = options.repeated_images == "merge"
        self._writer = AnnotationWriter(target, options.on_bad)
        self._on_bad, self._skipped = options.on_bad, Counter[str]()
        self._ids: dict[bytes, int] = {}
        self._merged: list[dict[str, Any]] = []  # images that a later entry may still change
        self._written: dict[bytes, int] = {}  # annotation id of each box
        self._entries = self._annotations = 0
        self._unit_boxes = self._tiny_boxes = 0

    def __enter__(self) -> EntryWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> bool | None:
        if kind is not None:
            return self._writer.__exit__(kind, error, traceback)
        try:
            self._finish()
        except BaseException as problem:
            self._writer.__exit__(type(problem), problem, problem.__traceback__)
            raise
        return self._writer.__exit__(None, None, None)

    def _finish(self) -> None:
        if not self._entries:
            raise DataError(located("the file has no entries", file=self.file, fix="check the path and the split"))
        if self._unit_boxes and self._tiny_boxes == self._unit_boxes:
            fix = "declare the unit of the boxes"
            problem = f"all {self._unit_boxes:,} boxes are within 0..1 of the declared unit: they are fractions"
            raise DataError(located(problem, file=self.file, fix=fix))
        if self._on_bad == "skip" and not self._ids:
            fix = "correct the file; an empty dataset cannot be used"
            raise DataError(located("no entry could be used", file=self.file, found=dict(self._skipped), fix=fix))
        for image in self._merged:
            self._writer.add_image(image)
        self._writer.set_categories([{"id": i, "name": name} for i, name in sorted(self.categories.table.items())])

    def json_lines(self) -> Iterator[tuple[int, Any]]:
        """(line number, value) of each JSON line; a byte-order mark and blank lines are skipped, bad lines reported."""
        with open_text(self.file) as lines:
            texts = ((n, line.removeprefix(BOM_UTF8) if n == 1 else line) for n, line in enumerate(lines, start=1))
            yield from self.parsed((n, text) for n, text in texts if text.strip())

    def parsed(self, texts: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
        """(line number, value) of each JSON text; those that are not JSON are reported."""
        for line, text in texts:
            self.count_entry()
            value = NO_VALUE
            with self.skipping("image", line):
                value = parse_json(text)
            if value is not NO_VALUE:
                yield line, value

    def count_entry(self) -> None:
        """Count an entry that does not come from `parsed`."""
        self._entries += 1

    @contextlib.contextmanager
    def skipping(self, kind: ItemKind, line: int | None) -> Iterator[None]:
        """List a BadItem that the block raises, with file and line."""
        try:
            yield
        except BadItem as problem:
            self._skipped[problem.reason] += 1
            self._writer.skip(kind, problem.reason, self.file, line, problem.detail)

    def image(self, name: object, field: str, width: int | None = None, height: int | None = None) -> Image:
        """The image called `name`, with its size in the file unless one is declared; BadItem if it is missing."""
        folder, inner = self._find(name, field)
        key = blake2b(f"{folder}/{inner}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        if key in self._ids and not self._merge:
            problem = f"{field}: {shown(name)} already has an entry; `repeated_images: merge` combines them"
            raise BadItem("several entries for one image", problem)
        if width is None or height is None:
            try:
                width, height = upright_size(f"{self.image_dirs[folder]}/{inner}")
            except ImageError as error:
                raise BadItem(error.reason, str(error)) from None
        elif width < 1 or height < 1:
            raise BadItem("invalid entry", f"expected a positive width and height, found {width}x{height}")
        return Image(inner, width, height, key)

    def _find(self, name: object, field: str) -> tuple[int, str]:
        if not isinstance(name, str) or not name.strip():
            raise BadItem("invalid entry", f"{field}: expected the name of an image file, found {shown(name)}")
        if "://" in name or name.startswith("data:"):
            raise BadItem("image is not a file", f"{field}: found {shown(name)}; download it")
        path = name
        for folder in self.image_dirs:
            if name.startswith(f"{folder}/"):
                path = name[len(folder) + 1 :]
        problem = None
        for candidate in dict.fromkeys((path, path.replace("\\", "/"))):
            try:
                return find_image(candidate.removeprefix("./"), self.image_dirs)
            except ImageError as error:
                problem = BadItem(error.reason, f"{field}: {shown(name)} not found in {', '.join(self.image_dirs)}")
            except DataError:
                expected = f"a path inside {', '.join(self.image_dirs)}"
                raise BadItem(
                    "file name outside the image folders", f"{field}: expected {expected}, found {shown(name)}"
                ) from None
        raise problem  # type: ignore[misc]  # there is at least one candidate

    def add_box(self, image: Image, line: int | None, category_id: int, box: object, unit: Unit, field: str) -> None:
        """Add a box to the image; BadItem if it is not a box in this unit."""
        try:
            found = pixel_box(box, unit, image, field)
        except BadItem:
            image.lost.add(category_id)
            raise
        if unit.exact and unit.width > 1:
            within = all(0 <= v <= 1 for v in box)  # type: ignore[attr-defined]
            self._unit_boxes += 1
            self._tiny_boxes += within
            if within and any(v % 1 for v in box):  # type: ignore[attr-defined]
                image.lost.add(category_id)
                expected = f"values in 0..{unit.width:g}"
                raise BadItem("box within 0..1", f"{field}: expected {expected}, found {shown(box)}: fractions?")
        image.boxes.append((category_id, found))

    def add_phrase(self, image: Image, text: object, boxes: Sequence[int], field: str) -> None:
        """Add a phrase that describes the `boxes` of the image, given by their indices; BadItem if it is not one."""
        if problem := phrase_problem(text):
            raise BadItem("invalid phrase", f"{field}: {problem[:_SHOWN]}")
        image.phrases.append((str(text), list(boxes)))

    def write(self, image: Image, **facts: Any) -> None:
        """Write the image, with `facts` about it, its boxes and its phrases."""
        image_id = self._ids.setdefault(image.key, len(self._ids) + 1)
        entry: dict[str, Any] = {"id": image_id, "file_name": image.name, "width": image.width, "height": image.height}
        if image.lost:
            entry["not_exhaustive_category_ids"] = sorted(image.lost)
        ids = [self._annotation(image_id, box, unique=bool(image.phrases)) for box in image.boxes]
        phrases = [{"text": text, "annotation_ids": [ids[i] for i in boxes]} for text, boxes in image.phrases]
        if phrases:
            entry["phrases"] = phrases
        if not self._merge:
            self._writer.add_image({**entry, **facts})
        elif image_id > len(self._merged):
            self._merged.append({**entry, **facts})
        else:
            earlier = self._merged[image_id - 1]
            if image.lost:
                lost = {*earlier.get("not_exhaustive_category_ids", ()), *image.lost}
                earlier["not_exhaustive_category_ids"] = sorted(lost)
            if phrases:
                earlier["phrases"] = earlier.get("phrases", []) + phrases

    def _annotation(self, image_id: int, categorised: tuple[int, tuple[float, ...]], *, unique: bool) -> int:
        """Write a box with its category; returns its annotation id, which a repeated box of the image may share."""
        key = b""
        if self._merge or unique:
            key = blake2b(repr((image_id, *categorised)).encode(), digest_size=8).digest()
            if key in self._written:
                return self._written[key]
        self._annotations += 1
        if key:
            self._written[key] = self._annotations
        category_id, box = categorised
        ids = {"id": self._annotations, "image_id": image_id, "category_id": category_id}
        self._writer.add_annotation({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        return self._annotations


def open_text(file: Path) -> IO[bytes]:
    """The open file; DataError if it cannot be read."""
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(located(f"cannot be read: {error.strerror}", file=file)) from error


def parse_json(text: bytes) -> Any:
    """The value of JSON text, which may contain NaN and Infinity: these are problems of a box, not of its entry."""
    try:
        return msgspec.json.decode(text)
    except NOT_JSON as error:
        reason = str(error)
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise BadItem("not UTF-8", f"byte {error.start}: {error.reason}") from None
    except (ValueError, RecursionError):
        raise BadItem("not JSON", reason) from None


def declared_categories(names: Sequence[str] | None, field: str = "categories") -> Categories:
    """The categories of the option `categories`, with ids from 1; those of the files if it is None."""
    if names is None:
        return Categories()
    return Categories({entry["id"]: entry["name"] for entry in numbered_categories(names, None, field)})
