"""Options of the commands that apply a merged checkpoint to image files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordexp.runtime.errors import ConfigError, DataError, located

if TYPE_CHECKING:
    from coordexp.inference.detector import Detector


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for images, model, categories and how the model is applied."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders of images, or quoted globs (`'a/**/*.jpg'`)"
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="merged checkpoint: a folder, or owner/name on the hub"
    )
    parser.add_argument("--categories", metavar="NAME,...", help="categories to detect (default: every object)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="answers decoded at the same time (default: 16)")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how a merged checkpoint is loaded and applied."""
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--max-blocks", type=int, metavar="N", help="maximum number of tiles per image (default: as in training)"
    )
    parser.add_argument("--polygons", action="store_true", help="allow polygons in answers (data.geometry: poly)")
    parser.add_argument(
        "--calibration", type=Path, metavar="JSON", help="calibration.json of the run, to output calibrated scores"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU, if any)")


def detector_of(args: argparse.Namespace) -> Detector:
    """The detector that the options describe; its weights are loaded at the first detection."""
    import msgspec

    from coordexp.inference.detector import Detector

    names = ("revision", "max_blocks", "polygons", "calibration", "device")
    detector = Detector(args.model, lazy=True, **{name: getattr(args, name) for name in names})
    if args.batch_size is not None:
        if args.batch_size < 1:
            raise ConfigError(located("out of range", field="--batch-size", expected=">= 1", found=args.batch_size))
        detector.options = msgspec.structs.replace(detector.options, batch_size=args.batch_size)
    return detector


def expanded(images: Sequence[str]) -> list[Any]:
    """The files and folders that the arguments name; globs are expanded, in alphabetical order."""
    found: list[Any] = []
    for text in images:
        if any(c in text for c in "*?[") and not Path(text).exists():
            matches = sorted(glob(text, recursive=True))
            if not matches:
                raise DataError(located("no file matches", field="IMAGE", found=text))
            found += [path for path in map(Path, matches) if path.is_file()]
        else:
            found.append(Path(text))
    return found


def category_names(text: str | None) -> list[str] | None:
    """Comma-separated names without surrounding space; None for None, ConfigError for an empty name."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        fix = "separate the names by single commas, or omit --categories to detect every object"
        raise ConfigError(located("--categories contains an empty name", found=text, fix=fix))
    return list(dict.fromkeys(names))
