"""The manifest of one split of a dataset: what rule `download` writes and every later stage reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, sha256_file

OnBad = Literal["error", "skip"]  # invalid items of a source are an error, or skipped and counted


class Source(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Annotations and images of one split. Paths are relative to the manifest file, or absolute.

    annotations: a file in COCO format, whatever the format of the user's files is.
    format: name of that original format in `datasets.formats.FORMATS`.
    federated: only the categories that an image lists as present, `neg_category_ids` or
        `not_exhaustive_category_ids` were verified in it (LVIS). Otherwise annotations are exhaustive: a category
        without an annotation is absent.
    annotations_sha256: of the file `annotations`.
    original_sha256: of the user's files that `annotations` was made from, if it is not their own file.
    """

    dataset: str
    split: str
    format: str
    federated: bool
    annotations: str
    image_dirs: list[str]
    annotations_sha256: str
    original_sha256: str | None = None


def read_source(manifest: str | Path) -> Source:
    """The manifest in a file, without reading the annotations; DataError if it is not one."""
    try:
        return msgspec.convert(read_json(manifest), Source)
    except msgspec.ValidationError as error:
        fix = "delete it and run the same command again: rule download writes it"
        raise DataError(located(f"not a source manifest: {error}", file=manifest, fix=fix)) from error


def load_source(manifest: str | Path) -> Source:
    """The manifest in a file; DataError if it is not one, or if its annotations are missing or have changed since."""
    manifest = Path(manifest)
    source = read_source(manifest)
    path = manifest.parent / source.annotations
    if not path.is_file():
        fix = f"restore the file, or delete {manifest} and run the same command again"
        raise DataError(located("file not found", file=path, fix=fix))
    found = sha256_file(path)
    if found != source.annotations_sha256:
        problem = f"the annotations have changed since {manifest.name} was written"
        fix = f"delete {manifest} and run the same command again: every stage then reads the present file"
        facts = {"field": "annotations_sha256", "expected": source.annotations_sha256, "found": found}
        raise DataError(located(problem, file=path, fix=fix, **facts))
    return source
