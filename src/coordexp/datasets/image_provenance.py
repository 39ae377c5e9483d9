"""From and by what the images of a split were made: a marker among them, for all that look at them later."""

from __future__ import annotations

import shutil
from pathlib import Path

from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

MARKER = ".images.json"


def claim(folder: Path, own: dict, made_by: dict) -> Path:
    """The folder of a split's images, emptied if an earlier conversion made them from or by something else.

    `own` names data set and split, `made_by` holds the rest and `image_dirs`, the folders that they come from.
    DataError for a folder of another split, or of something else.
    """
    made_by = own | made_by
    marker = folder / MARKER
    earlier = read_json(marker) if marker.exists() else None
    if earlier is None and folder.exists() and any(folder.iterdir()):
        fix = "give a folder that is empty, or that an earlier conversion of this split filled"
        raise DataError(located("this folder holds something else", file=folder, fix=fix))
    if earlier is not None and {k: earlier.get(k) for k in own} != own:
        fix = "give every split its own folder"
        raise DataError(located("this folder is another split's", file=folder, expected=own, found=earlier, fix=fix))
    if earlier is not None and earlier != made_by:
        shutil.rmtree(folder)
    write_json(marker, made_by)
    return folder


def read(folder: Path) -> dict:
    """By what the images in `folder` were made, wherever they came from."""
    return {key: value for key, value in read_json(folder / MARKER).items() if key != "image_dirs"}


def beside(records_jsonl: str | Path) -> list[dict]:
    """The same of the images beside converted records, split by split."""
    return [read(marker.parent) for marker in sorted(Path(records_jsonl).parent.glob(f"images/*/{MARKER}"))]
