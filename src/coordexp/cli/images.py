"""Options of the commands that apply a merged checkpoint to image files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordexp.cli.arguments import add_field
from coordexp.runtime.errors import ConfigError, DataError, located

if TYPE_CHECKING:
    from coordexp.geometry.slices import SliceOptions
    from coordexp.inference.detector import Detector


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for images, model, categories and how the model is applied."""
    from coordexp.inference.options import PredictOptions

    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders of images, or quoted globs (`'a/**/*.jpg'`)"
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="merged checkpoint: a folder, or owner/name on the hub"
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--categories", metavar="NAME,...", help="categories to detect (default: every object)")
    asked.add_argument(
        "--phrase",
        action="append",
        dest="phrases",
        metavar="TEXT",
        help="detect the objects that a phrase describes, such as 'the leftmost dog'; repeat it for more phrases",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="answers decoded at the same time (default: 16)")
    add_field(parser, PredictOptions, "engine", default=None)
    add_slice_options(parser)
    add_model_options(parser)


def add_slice_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for detection in overlapping slices."""
    parser.add_argument(
        "--slices",
        metavar="CxR,...",
        help="detect in overlapping slices of each image, in one or more grids of columns x rows, for example 4x3",
    )
    parser.add_argument("--slice-size", type=int, metavar="N", help="the same with square slices of N x N pixels")
    parser.add_argument(
        "--slice-overlap", type=float, metavar="F", help="fraction shared by neighbours (default: 0.25)"
    )
    parser.add_argument("--slice-blocks", type=int, metavar="N", help="maximum number of tiles per slice")
    parser.add_argument("--whole-image", action="store_true", help="detect in the whole image as well as its slices")


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

    names = ("revision", "max_blocks", "polygons", "calibration", "device", "engine")
    given = {name: getattr(args, name) for name in names}
    detector = Detector(args.model, lazy=True, slices=slices_from(args), **given)
    if args.batch_size is not None:
        if args.batch_size < 1:
            raise ConfigError(located("out of range", field="--batch-size", expected=">= 1", found=args.batch_size))
        detector.options = msgspec.structs.replace(detector.options, batch_size=args.batch_size)
    return detector


def slices_from(args: argparse.Namespace) -> SliceOptions | None:
    """The slices that the options describe, None without any; ConfigError for invalid ones."""
    import msgspec

    from coordexp.geometry.slices import SliceOptions

    options: dict[str, Any] = {
        "overlap": args.slice_overlap,
        "max_blocks": args.slice_blocks,
        "whole_image": args.whole_image or None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if args.slices is None and args.slice_size is None:
        if options:
            fix = "add --slices, for example --slices 2x2, or --slice-size"
            raise ConfigError(located("slice options have no effect without slices", found=options, fix=fix))
        return None
    grids = [text.lower().split("x") for text in (args.slices or "").split(",") if text]
    if not all(len(grid) == 2 and all(map(str.isdecimal, grid)) for grid in grids):
        fix = "give columns x rows, for example --slices 4x3"
        raise ConfigError(located("invalid grid", field="--slices", found=args.slices, fix=fix))
    sizes = [] if args.slice_size is None else [args.slice_size]
    try:
        return msgspec.convert({"grids": [list(map(int, g)) for g in grids], "sizes": sizes, **options}, SliceOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(located(f"invalid slices: {error}", field="--slices, --slice-*")) from error


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
