"""Stage `coord_tokenize`: records to token space, quantised from the unrounded `norm`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordexp.geometry.norm1000 import EmitNorm, encode_box, encode_poly
from coordexp.records import CoordSpace, Object, Record, coord_tokens, read_records
from coordexp.runtime.io import write_jsonl

_TOKENS = coord_tokens()


def tokenize(
    src: str | Path, dst: str | Path, emit_norm: EmitNorm = "norm1000", *, expect: CoordSpace = "pixel"
) -> int:
    """Write the records of `src` in token space to `dst`; returns their number.

    DataError if a record is not in space `expect`, so records are never tokenized twice.
    """
    return write_jsonl(dst, (to_tokens(record, emit_norm) for record in read_records(src, expect)))


def to_tokens(record: Record, emit_norm: EmitNorm = "norm1000") -> Record:
    """`record` in token space; its image, `norm` and metadata do not change."""
    size = (record.width, record.height)
    objects = [_object(obj, emit_norm, size) for obj in record.objects]
    return msgspec.structs.replace(record, coord_space="token", objects=objects)


def _object(obj: Object, emit_norm: EmitNorm, size: tuple[int, int]) -> Object:
    if obj.poly is not None:
        tokens = [_TOKENS[k] for k in encode_poly(obj.norm, emit_norm, size)]
        return msgspec.structs.replace(obj, poly=tokens)
    return msgspec.structs.replace(obj, bbox_2d=[_TOKENS[k] for k in encode_box(obj.norm, emit_norm, size)])
