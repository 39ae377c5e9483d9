"""Validation of a records file. Nothing is repaired."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from coordexp.datasets.images import ImageError, open_image
from coordexp.geometry.norm1000 import encode_box, encode_poly
from coordexp.records import Record, coord_bin, decode_record, record_problems
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import enumerate_lines

PIXEL_TOLERANCE = 1.5 + 1e-6  # rounding moves a coordinate by half a pixel, widening a thin box by one more


class Problem(msgspec.Struct, frozen=True):
    """A violation: line (from 1; 0 for a problem of the file), field, and description."""

    line: int
    field: str
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.problem}" if self.line else f"{self.field}: {self.problem}"


def validate(path: str | Path, open_images: bool = False) -> list[Problem]:
    """Every problem of a JSONL file of records, in file order; empty for a valid file.

    Beyond the rules for a single record: all records have the same `coord_space`, no image id occurs twice, images are
    existing files named by relative paths, and `norm` agrees with the coordinates (pixels to within rounding, bins
    exactly, by one of the two codecs). `open_images` also decodes every image and compares its size.
    DataError for a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    problems: list[Problem] = []
    spaces: dict[str, int] = {}
    seen: dict[tuple[type, int | str], int] = {}
    count = 0
    for line, data in enumerate_lines(path):
        count += 1
        try:
            record = decode_record(data, path, line)
        except DataError as error:
            problems.append(Problem(line, "record", str(error).splitlines()[0].split(": ", 1)[-1]))
            continue
        found = [(f, p) for f, p in record_problems(record)]
        invalid = {f.split(".")[0] for f, _ in found}
        found += _geometry_problems(record, invalid)
        if len(record.images) == 1:
            found += _image_problems(record, path.parent, open_images)
        first = spaces.setdefault(record.coord_space, line)
        if len(spaces) > 1 and first == line:
            other = next(iter(spaces))
            found.append(("coord_space", f"is {record.coord_space!r}, but that of line {spaces[other]} is {other!r}"))
        identity = (type(record.metadata.image_id), record.metadata.image_id)
        if (earlier := seen.setdefault(identity, line)) != line:
            found.append(("metadata.image_id", f"{identity[1]!r} is also the id of line {earlier}"))
        problems += [Problem(line, f, p) for f, p in found]
    if not count:
        problems.append(Problem(0, "file", "has no records"))
    return problems


def _geometry_problems(record: Record, invalid: set[str]) -> list[tuple[str, str]]:
    """Objects whose coordinates do not match their `norm`, except those in `invalid`."""
    problems = []
    size = (record.width, record.height)
    for i, obj in enumerate(record.objects):
        name = f"objects[{i}]"
        if name in invalid or min(size) <= 0:
            continue
        if record.coord_space == "pixel":
            difference = np.abs(np.array(obj.norm).reshape(-1, 2) * size - np.reshape(obj.coords, (-1, 2))).max()
            if difference > PIXEL_TOLERANCE:
                problems.append((f"{name}.norm", f"differs from the coordinates by {difference:.1f} pixels"))
            continue
        bins = [coord_bin(c) if isinstance(c, str) else c for c in obj.coords]
        encode = encode_box if obj.bbox_2d is not None else encode_poly
        codecs = ("norm1000", "norm1000_legacy") if min(size) >= 2 else ("norm1000",)
        if not any(bins == encode(obj.norm, codec, size) for codec in codecs):
            expected = encode(obj.norm)
            problems.append((f"{name}.norm", f"is quantised to {expected}, but the coordinates are {bins}"))
    return problems


def _image_problems(record: Record, folder: Path, open_images: bool) -> list[tuple[str, str]]:
    name = record.images[0]
    if not name or PurePosixPath(name).is_absolute():
        return [("images", f"expected a path relative to this file, found {name!r}")]
    image = folder / name
    if not image.is_file():
        return [("images", f"{name} does not exist")]
    if not open_images:
        return []
    try:
        with open_image(image) as opened:
            opened.load()
            size = opened.size
    except ImageError as error:
        return [("images", f"{name} cannot be read: {error}")]
    if size != (record.width, record.height):
        return [("images", f"{name} has {size[0]}x{size[1]} pixels, the record {record.width}x{record.height}")]
    return []
