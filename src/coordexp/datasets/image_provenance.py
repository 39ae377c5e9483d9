"""How the converted images of a split were made: a marker file in their folder, read by the stages that use them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

MARKER = ".images.json"


def prepare_images_dir(folder: Path, split: dict[str, str], made_from: dict[str, Any]) -> Path:
    """The folder for a split's images, emptied if an earlier conversion made them from other images or differently.

    `split` names dataset and split. `made_from` holds everything that decides the pixels, with the source folders as
    `image_dirs`. DataError for a folder that belongs to another split or was not created by CoordExp.
    """
    provenance = split | made_from
    marker = folder / MARKER
    earlier = read_json(marker) if marker.exists() else None
    if earlier is None and folder.exists() and any(folder.iterdir()):
        fix = "give an empty folder, or one that an earlier conversion of this split wrote"
        raise DataError(located("directory is not empty and was not created by CoordExp", file=folder, fix=fix))
    if earlier is not None and {k: earlier.get(k) for k in split} != split:
        fix = "give each split a folder of its own"
        raise DataError(
            located("the folder belongs to another split", file=folder, expected=split, found=earlier, fix=fix)
        )
    if earlier is not None and earlier != provenance:
        shutil.rmtree(folder)
    write_json(marker, provenance)
    return folder


def read_provenance(folder: Path) -> dict[str, Any]:
    """How the images in `folder` were made, without the folders that they came from."""
    return {key: value for key, value in read_json(folder / MARKER).items() if key != "image_dirs"}


def provenance_of_records(records_jsonl: str | Path) -> list[dict[str, Any]]:
    """The provenance of the images of converted records, split by split."""
    return [read_provenance(marker.parent) for marker in sorted(Path(records_jsonl).parent.glob(f"images/*/{MARKER}"))]
