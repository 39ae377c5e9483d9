"""How the converted images of a split were made: a marker file in their folder, read by the stages that use them."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import msgspec

from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import read_json, write_json

MARKER = ".images.json"


class _Images(msgspec.Struct, gc=False):
    images: list[str] = []


_decode = msgspec.json.Decoder(_Images).decode


def prepare_images_dir(folder: Path, split: dict[str, str], made_from: dict[str, Any]) -> Path:
    """The folder for a split's images, emptied if an earlier conversion made them from other images or differently.

    `split` names dataset and split. `made_from` holds everything that decides the pixels, with the source folders as
    `image_dirs`. DataError for a folder that belongs to another split or was not created by CoordExp.
    """
    provenance = split | made_from
    marker = folder / MARKER
    earlier = read_json(marker) if marker.exists() else None
    # A killed process may have left the temporary file of the marker.
    if earlier is None and folder.exists() and any(not _is_temporary_marker(file) for file in folder.iterdir()):
        fix = "use an empty directory, or one that an earlier conversion of this split wrote"
        raise DataError(located("directory is not empty and was not created by CoordExp", file=folder, fix=fix))
    if earlier is not None and {k: earlier.get(k) for k in split} != split:
        fix = "use a separate folder for each split"
        raise DataError(
            located("the folder belongs to another split", file=folder, expected=split, found=earlier, fix=fix)
        )
    if earlier is not None and earlier != provenance:
        _clear(folder)
    write_json(marker, provenance)
    return folder


def _is_temporary_marker(file: Path) -> bool:
    return file.match(f".{MARKER}.*.part")


def _clear(folder: Path) -> None:
    """Delete everything but the marker, which identifies the folder if this process is killed."""
    for file in folder.iterdir():
        if file.name == MARKER:
            continue
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()


def read_provenance(folder: Path) -> dict[str, Any]:
    """How the images in `folder` were made, without the folders that they came from."""
    return {key: value for key, value in read_json(folder / MARKER).items() if key != "image_dirs"}


def provenance_of_records(records_jsonl: str | Path) -> list[dict[str, Any]]:
    """The provenance of the images that converted records name, split by split.

    The images of other splits do not count, so that a test split which is converted later changes nothing.
    """
    path = Path(records_jsonl)
    folders: dict[str, None] = {}
    with path.open("rb") if path.is_file() else io.BytesIO() as lines:
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):  # reported by the reader of the records
                folders |= dict.fromkeys(image.rpartition("/")[0] for image in _decode(line).images)
    named = {f for name in folders for f in (path.parent / name, *(path.parent / name).parents)}
    found = {folder for folder in named if (folder / MARKER).is_file()}
    if not found:  # images elsewhere, or another file
        found = {marker.parent for marker in path.parent.glob(f"images/*/{MARKER}")}
    return [read_provenance(folder) for folder in sorted(found)]
