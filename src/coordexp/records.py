"""The record types that all stages exchange, and the coordinate tokens.

A record is one image, as one line of JSON. Its `coord_space` is the unit of `bbox_2d` and `poly`:

| `coord_space` | values                                                                      |
|---------------|-----------------------------------------------------------------------------|
| `pixel`       | pixels of the record's image, 0..width and 0..height                        |
| `norm1000`    | integer bins 0..999, fractions of the image's width and height times 999    |
| `token`       | the bins as coordinate tokens, `<|coord_0|>`..`<|coord_999|>`               |

`norm` is the same geometry as unrounded floats in [0, 1], whatever the space. A reader states the space that it
expects, and any other space is an error: units are never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import NOT_JSON, enumerate_lines

COORD_BINS = 1000
WILDCARD_TOKEN = "<|coord_*|>"
RAW_SCORE = "raw_score"  # in a detection's score_parts: what the score was before calibration
COORD_TOKEN = re.compile(r"<\|coord_(0|[1-9]\d{0,2})\|>")

CoordSpace = Literal["pixel", "norm1000", "token"]
Coordinate = int | float | str  # a number, or a token in token space


def coord_token(k: int) -> str:
    """The coordinate token of bin `k` (0..999)."""
    if not 0 <= k < COORD_BINS:
        raise ValueError(f"coordinate bin must be in 0..{COORD_BINS - 1}, found {k}")
    return f"<|coord_{k}|>"


def coord_bin(token: str) -> int:
    """The bin (0..999) of a coordinate token; ValueError for any other text."""
    match = COORD_TOKEN.fullmatch(token)
    if match is None:
        raise ValueError(f"expected one coordinate token like <|coord_42|>, found {token!r}")
    return int(match.group(1))


def coord_tokens() -> list[str]:
    """The 1,000 coordinate tokens, in the order of their bins."""
    return [coord_token(k) for k in range(COORD_BINS)]


def software_file(predictions: str | Path) -> Path:
    """The file beside predictions that lists the software of the processes that made them."""
    return Path(predictions).with_suffix(".software.json")


class Object(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One instance: a description, and either a `bbox_2d` [x1, y1, x2, y2] or a flat `poly` [x, y, ...]."""

    desc: str
    category_id: int
    norm: list[float]
    bbox_2d: list[Coordinate] | None = None
    poly: list[Coordinate] | None = None
    iscrowd: bool = False

    @property
    def coords(self) -> list[Coordinate]:
        """The box or the polygon, in the record's space."""
        return self.bbox_2d if self.bbox_2d is not None else self.poly  # type: ignore[return-value]

    @property
    def norm_box(self) -> tuple[float, float, float, float]:
        """[x1, y1, x2, y2] in [0, 1]: the box itself, or the bounds of the polygon."""
        xs, ys = self.norm[0::2], self.norm[1::2]
        return min(xs), min(ys), max(xs), max(ys)


class Metadata(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Facts about the source image that evaluation needs; sizes are in pixels.

    not_exhaustive_category_ids: LVIS's list and, for any format, the categories that lost an annotation in conversion
    (a crowd, an empty box). Neither their objects nor their absence is completely known.
    """

    image_id: int | str
    source_width: int
    source_height: int
    file_name: str | None = None
    dataset: str | None = None
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


class Phrase(msgspec.Struct, forbid_unknown_fields=True):
    """A phrase about the image, and the indices in `Record.objects` of all objects that it describes; none: `[]`."""

    text: str
    objects: list[int]


class Record(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One image with its objects; `images` holds one path, relative to the JSONL file.

    phrases: phrases with known answers, for grounding; the same text may occur more than once.
    """

    images: list[str]
    width: int
    height: int
    coord_space: CoordSpace
    objects: list[Object]
    metadata: Metadata
    phrases: list[Phrase] = []


_record_decoder = msgspec.json.Decoder(Record)


class Detection(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One predicted object.

    norm: decoded continuous box [x1, y1, x2, y2] in [0, 1]. bins: the generated coordinate tokens (0..999). spread:
    standard deviation of each coordinate's distribution, in units of [0, 1]. score_parts: the terms that `score` was
    computed from. poly: decoded polygon [x, y, ...] in [0, 1]. slice: index into the prediction's `slices`; only `bins`
    are relative to that slice.
    """

    desc: str
    norm: list[float]
    score: float
    bins: list[int] = []
    spread: list[float] = []
    score_parts: dict[str, float] = {}
    poly: list[float] | None = None
    slice: int | None = None


class Prediction(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The answer for one image: a line of `predictions.jsonl`. Sizes are pixels of the source image.

    Every evaluated image has a line, even without detections. finish: why generation ended. problems: number of parts
    of the answer that the parser could not use, by reason. slices: [x1, y1, x2, y2] in [0, 1] of each slice, if the
    image was predicted in slices; `text` has the answers to all prompts of the first slice, then of the second, ...
    merged: number of detections that were merged into one of another slice. truncated_phrases: phrases with a truncated
    answer.
    """

    image_id: int | str
    source_width: int
    source_height: int
    protocol: str
    finish: Literal["stop", "length"]
    text: str
    detections: list[Detection]
    problems: dict[str, int] = {}
    token_ids: list[int] = []
    token_logprobs: list[float] = []
    slices: list[list[float]] = []
    merged: int = 0
    truncated_phrases: list[str] = []


def read_records(path: str | Path, expect: CoordSpace) -> Iterator[Record]:
    """Stream the records of a JSONL file; DataError for one that is invalid or not in space `expect`."""
    for number, line in enumerate_lines(path):
        yield check_record(decode_record(line, path, number), expect, f"{path}:{number}")


def decode_record(line: bytes, path: str | Path, number: int) -> Record:
    """Decode a line; DataError with file, line and field if it is not a record."""
    try:
        return _record_decoder.decode(line)
    except NOT_JSON as error:
        fix = "see docs/record.md for the format of a record"
        raise DataError(located(f"not a record: {error}", file=path, line=number, fix=fix)) from error


def record_problems(record: Record) -> list[tuple[str, str]]:
    """Every violation of the record format as (field, problem); empty for a valid record."""
    problems: list[tuple[str, str]] = []
    if len(record.images) != 1:
        problems.append(("images", f"expected one path, found {len(record.images)}"))
    if record.width <= 0 or record.height <= 0:
        problems.append(("width/height", f"expected positive sizes, found {record.width}x{record.height}"))
    for i, obj in enumerate(record.objects):
        problems += [(f"objects[{i}].{f}", p) for f, p in _object_problems(obj, record)]
    for i, phrase in enumerate(record.phrases):
        problems += [(f"phrases[{i}].{f}", p) for f, p in _phrase_problems(phrase, len(record.objects))]
    return problems


def check_record(record: Record, expected_space: CoordSpace, where: str) -> Record:
    """The record, if it is valid and in `expected_space`; otherwise a DataError with `where`, field and fix."""
    if record.coord_space != expected_space:
        raise DataError(
            f"{where}: coord_space: expected {expected_space!r}, found {record.coord_space!r}\n"
            f"  -> use a file in {expected_space} space; units are never converted implicitly"
        )
    problems = record_problems(record)
    if problems:
        listed = "\n".join(f"{where}: {field}: {problem}" for field, problem in problems)
        raise DataError(f"{listed}\n  -> run `coordexp validate` on the file to list every invalid record")
    return record


def _object_problems(obj: Object, record: Record) -> list[tuple[str, str]]:
    if not obj.desc.strip():
        return [("desc", "is empty")]
    if "<|" in obj.desc:
        return [("desc", f"{obj.desc!r} contains '<|', which starts a special token")]
    if (obj.bbox_2d is None) == (obj.poly is None):
        return [("bbox_2d/poly", "expected exactly one of the two")]
    name = "bbox_2d" if obj.bbox_2d is not None else "poly"
    coords = obj.coords
    if name == "bbox_2d" and len(coords) != 4:
        return [(name, f"expected 4 numbers, found {len(coords)}")]
    if name == "poly" and (len(coords) < 6 or len(coords) % 2):
        return [(name, f"expected an even count of at least 6 numbers, found {len(coords)}")]
    if len(obj.norm) != len(coords):
        return [("norm", f"expected {len(coords)} numbers like {name}, found {len(obj.norm)}")]
    if not all(math.isfinite(v) and 0.0 <= v <= 1.0 for v in obj.norm):
        return [("norm", f"expected finite numbers in [0, 1], found {obj.norm}")]
    return _range_problems(name, coords, record)


def _phrase_problems(phrase: Phrase, objects: int) -> list[tuple[str, str]]:
    if not phrase.text.strip():
        return [("text", "expected a phrase, found an empty text")]
    if "<|" in phrase.text:
        return [("text", f"{phrase.text!r} contains '<|', which starts a special token")]
    outside = [i for i in phrase.objects if not 0 <= i < objects]
    if outside:
        return [("objects", f"expected indices of the {objects} objects, found {outside[0]}")]
    if len(set(phrase.objects)) < len(phrase.objects):
        return [("objects", f"expected different indices, found {phrase.objects}")]
    return []


def _range_problems(name: str, coords: list, record: Record) -> list[tuple[str, str]]:
    if record.coord_space == "token":
        bad = [v for v in coords if not (isinstance(v, str) and COORD_TOKEN.fullmatch(v))]
        if bad:
            return [(name, f"expected coordinate tokens, found {bad[0]!r}")]
        values = [coord_bin(v) for v in coords]
        limits = (COORD_BINS - 1, COORD_BINS - 1)
    else:
        if any(isinstance(v, str) or not math.isfinite(v) for v in coords):
            return [(name, f"expected finite numbers in {record.coord_space} space, found {coords}")]
        values = coords
        pixel = record.coord_space == "pixel"
        limits = (record.width, record.height) if pixel else (COORD_BINS - 1, COORD_BINS - 1)
    for axis, limit in enumerate(limits):
        outside = [v for v in values[axis::2] if not 0 <= v <= limit]
        if outside:
            return [(name, f"expected {'xy'[axis]} in 0..{limit} ({record.coord_space}), found {outside[0]}")]
    if name == "bbox_2d" and (values[0] >= values[2] or values[1] >= values[3]):
        return [(name, f"expected x1 < x2 and y1 < y2, found {values}")]
    return []
