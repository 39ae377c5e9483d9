"""Command `detect`: detect objects in image files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordexp.cli.arguments import IMAGE_SUFFIXES, Commands, add_score_threshold, subparser
from coordexp.cli.images import add_detector_options, category_names, detector_of, expanded
from coordexp.runtime.errors import ConfigError
from coordexp.runtime.output_guard import check_output_file, output_dir, refuse_foreign_folder

if TYPE_CHECKING:
    from coordexp.inference.image_detections import Detections

JSONL, DRAWN = "detections.jsonl", "images"


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "detect",
        "Detect objects in images with a merged checkpoint.\n\nWithout --out, or with an image file as --out, prints "
        "one line of JSON per image.",
        "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png",
        "coordexp detect photos/ 'more/**/*.jpg' --model results/lvis_768/merged --score-threshold 0.3 --out found",
    )
    add_detector_options(parser)
    add_score_threshold(parser)
    parser.add_argument("--max-objects", type=int, metavar="N", help="maximum number of objects per image, by score")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help=f"image file: draw the detections of a single image; any other name: new folder for {JSONL} and drawn "
        f"images ({DRAWN}/)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the detections of each image, or write and draw them if --out is given."""
    from coordexp.inference.draw import is_drawing, save_drawing
    from coordexp.inference.image_sources import image_sources

    images = expanded(args.images)
    drawing = args.out is not None and args.out.suffix.lower() in IMAGE_SUFFIXES
    if drawing:
        check_output_file(args.out, is_drawing, *images, args.calibration)
    elif args.out is not None:
        refuse_foreign_folder(args.out, "detect")
    categories = category_names(args.categories)
    detector = detector_of(args)
    sources = image_sources(images)
    if drawing and len(sources) > 1:
        fix = f"pass a folder as --out, for example {args.out.stem}"
        raise ConfigError(f"an image as --out needs a single image, found {len(sources)}\n  -> {fix}")
    limits = {"score_threshold": args.score_threshold, "max_objects": args.max_objects}
    results = detector.stream(sources, categories, phrases=args.phrases, **limits)
    if args.out and not drawing:
        _write(results, [source.name for source in sources], args.out)
        return
    for found in results:
        print(_line(found), flush=True)
        if drawing:
            save_drawing(found.draw(), args.out)


def _write(results: Iterator[Detections], names: Sequence[str], out: Path) -> None:
    """Write the detections of all images and the drawn images to a new folder."""
    from coordexp.inference.draw import save_drawing
    from coordexp.runtime.progress import Progress

    base = os.path.commonpath([Path(name).absolute().parent for name in names])
    progress = Progress("detect", len(names), "images", counted=("objects",))
    truncated = 0
    with output_dir(out, "detect") as folder, (folder / JSONL).open("w", encoding="utf-8") as lines:
        for found in results:
            lines.write(f"{_line(found)}\n")
            name = Path(found.name).absolute().relative_to(base)
            if name.suffix.lower() not in IMAGE_SUFFIXES:
                name = name.with_name(f"{name.name}.png")
            (folder / DRAWN / name).parent.mkdir(parents=True, exist_ok=True)
            save_drawing(found.draw(), folder / DRAWN / name)
            truncated += found.truncated
            progress.add(objects=len(found))
    counts = progress.finish()
    if truncated:
        print(f"answers that reached the maximum length, so that objects may be missing: {truncated}")
    print(f"wrote {out}: {counts['objects']:.0f} objects in {len(names)} images")


def _line(found: Detections) -> str:
    """The detections of one image as a line of JSON."""
    rows = []
    for detection, box, polygon in zip(found.objects, found.boxes.tolist(), found.polygons, strict=True):
        outline = {} if polygon is None else {"poly": polygon.ravel().round(2).tolist()}
        rows.append({"desc": detection.desc, "bbox": [round(v, 2) for v in box], **outline, "score": detection.score})
    return msgspec.json.encode({"image": found.name, "detections": rows}).decode()
