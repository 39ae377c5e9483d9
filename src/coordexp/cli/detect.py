"""Command `detect`: detect objects in image files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from coordexp.cli.arguments import Commands, image_file, subparser
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.output_guard import check_output_file


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "detect",
        "Detect objects in images with a merged checkpoint.",
        "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="merged checkpoint")
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
    from coordexp.inference import detect as detection
    from coordexp.inference.draw import is_drawing

    if args.out and len(args.images) > 1:
        fix = "run the command once per image"
        raise ConfigError(f"--out needs a single image, found {len(args.images)}\n  -> {fix}")
    check_output_file(args.out, is_drawing, *args.images, args.calibration)
    categories = None if args.categories is None else _category_names(args.categories)
    options = {"max_blocks": args.max_blocks, "calibration": args.calibration, "polygons": args.polygons}
    for result in detection.detect(args.model, args.images, categories, **options):
        _print_detections(result, args.out)


def _category_names(text: str) -> list[str]:
    """Comma-separated names without surrounding space; ConfigError for an empty name."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        fix = "separate the names by single commas, or omit --categories to detect every object"
        raise ConfigError(located("--categories contains an empty name", found=text, fix=fix))
    return list(dict.fromkeys(names))


def _print_detections(result: Any, out: Path | None) -> None:
    """Print the detections of one image as a line of JSON, and draw them if `out` is given."""
    from coordexp.datasets.images import load_image
    from coordexp.inference.draw import draw, save_drawing

    rows = []
    for detection, box, poly in zip(result.detections, result.boxes(), result.polygons(), strict=True):
        outline = {"poly": [round(v, 2) for v in poly]} if poly else {}
        bbox = [round(v, 2) for v in box]
        rows.append({"desc": detection.desc, "bbox": bbox, **outline, "score": detection.score})
    print(msgspec.json.encode({"image": result.path, "detections": rows}).decode())
    if out:
        size = result.width, result.height
        save_drawing(draw(load_image(result.path, size, size), result.detections), out)
