"""Command `detect`: detect objects in image files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordexp.cli.arguments import Commands, image_file, subparser
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.output_guard import check_output_file

if TYPE_CHECKING:
    from coordexp.inference.image_detections import Detections


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "detect",
        "Detect objects in images with a merged checkpoint.",
        "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="merged checkpoint: a folder, or owner/name on the hub"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--categories", metavar="NAME,...", help="categories to detect (default: every object)")
    parser.add_argument(
        "--max-blocks", type=int, metavar="N", help="maximum number of tiles per image (default: as in training)"
    )
    parser.add_argument("--polygons", action="store_true", help="allow polygons in answers (data.geometry: poly)")
    parser.add_argument(
        "--calibration", type=Path, metavar="JSON", help="calibration.json of the run, to output calibrated scores"
    )
    parser.add_argument(
        "--out", type=image_file, metavar="IMAGE", help="draw the detections of a single image to this file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the detections of each image, and draw them if --out is given."""
    from coordexp.inference.detector import Detector
    from coordexp.inference.draw import is_drawing, save_drawing
    from coordexp.inference.image_sources import image_sources

    if args.out and len(args.images) > 1:
        fix = "run the command once per image"
        raise ConfigError(f"--out needs a single image, found {len(args.images)}\n  -> {fix}")
    check_output_file(args.out, is_drawing, *args.images, args.calibration)
    categories = None if args.categories is None else _category_names(args.categories)
    options = {"max_blocks": args.max_blocks, "calibration": args.calibration, "polygons": args.polygons}
    detector = Detector(args.model, revision=args.revision, lazy=True, **options)
    for found in detector.stream(image_sources(args.images), categories):
        print(_line(found))
        if args.out:
            save_drawing(found.draw(), args.out)


def _category_names(text: str) -> list[str]:
    """Comma-separated names without surrounding space; ConfigError for an empty name."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        fix = "separate the names by single commas, or omit --categories to detect every object"
        raise ConfigError(located("--categories contains an empty name", found=text, fix=fix))
    return list(dict.fromkeys(names))


def _line(found: Detections) -> str:
    """The detections of one image as a line of JSON."""
    rows = []
    for detection, box, polygon in zip(found.objects, found.boxes.tolist(), found.polygons, strict=True):
        outline = {} if polygon is None else {"poly": polygon.ravel().round(2).tolist()}
        rows.append({"desc": detection.desc, "bbox": [round(v, 2) for v in box], **outline, "score": detection.score})
    return msgspec.json.encode({"image": found.name, "detections": rows}).decode()
