"""Command `show`: draw the annotations or predictions of one image, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coordexp.cli.arguments import (
    Commands,
    add_image_folders,
    add_records,
    add_score_threshold,
    image_file,
    subparser,
)
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.output_guard import check_output_file

if TYPE_CHECKING:
    from coordexp.datasets.annotated_image import AnnotatedImage
    from coordexp.records import Detection


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.datasets.formats import FORMATS

    parser = subparser(
        commands,
        "show",
        "Draw the annotations or predictions of one image, without a model.",
        "coordexp show results/shapes_9/data/train.jsonl --index 3 --out boxes.png",
        "coordexp show instances_val2017.json --images val2017 --index 12",
        "coordexp show /data/parts --split val",
        "coordexp show results/shapes_9/eval/predictions.jsonl --records results/shapes_9/data/val.jsonl",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="records, predictions, an annotation file, or the folder of a dataset"
    )
    parser.add_argument("--index", type=int, default=0, metavar="N", help="index of the image, from 0 (default: 0)")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"format of the dataset, if several formats can read it: {', '.join(FORMATS.names())}",
    )
    parser.add_argument("--split", metavar="NAME", help="split to show, if the dataset has several")
    add_image_folders(parser, "folder of the images of a COCO or LVIS file, if not found automatically")
    add_records(parser)
    add_score_threshold(parser)
    parser.add_argument(
        "--out", type=image_file, default=Path("show.png"), metavar="IMAGE", help="image to write (default: show.png)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """List the objects of the image, and draw them."""
    from coordexp.datasets.images import ImageError, load_image
    from coordexp.inference.draw import draw, is_drawing, save_drawing

    check_output_file(args.out, is_drawing, args.file, args.records)
    image, objects = _predicted(args) if args.records else _annotated(args)
    try:
        pixels = load_image(image.path, image.size, image.size)
    except ImageError as error:
        raise DataError(located(str(error), file=image.path)) from error
    shown = [found for found in objects if found.score >= args.score_threshold]
    save_drawing(draw(pixels, shown, scores=bool(args.records)), args.out)
    print(f"{image.path}: {image.size[0]}x{image.size[1]} pixels, {len(shown)} objects")
    for found in shown:
        sides = zip(found.norm, image.size * 2, strict=True)
        box = ", ".join(f"{value * side:.1f}" for value, side in sides)
        print(f"  {found.desc}: [{box}]" + (f" {found.score:.3f}" if args.records else ""))
    for problem in image.problems:
        print(f"  problem: {problem}")
    print(f"wrote {args.out}")


def _annotated(args: argparse.Namespace) -> tuple[AnnotatedImage, list[Detection]]:
    from coordexp.datasets import annotated_image
    from coordexp.records import Detection

    if args.images:
        image = annotated_image.from_annotations(args.file, args.index, [str(folder) for folder in args.images])
    elif args.file.is_file() and annotated_image.holds_records(args.file):
        image = annotated_image.from_records(args.file, args.index)
    else:
        image = annotated_image.from_dataset(args.file, args.index, args.format, args.split)
    return image, [Detection(o.desc, list(o.norm_box), 1.0, poly=o.norm if o.poly else None) for o in image.objects]


def _predicted(args: argparse.Namespace) -> tuple[AnnotatedImage, list[Detection]]:
    from coordexp.datasets.annotated_image import AnnotatedImage
    from coordexp.evaluation.detections import read_predictions
    from coordexp.records import read_records

    predictions = [prediction for _, prediction in read_predictions(args.file)]
    if not 0 <= args.index < len(predictions):
        expected = f"0 to {len(predictions) - 1}"
        raise DataError(located("no such image", file=args.file, field="--index", expected=expected, found=args.index))
    chosen = predictions[args.index]
    for record in read_records(args.records, "pixel"):
        if record.metadata.image_id == chosen.image_id:
            problems = [f"{count} {reason}" for reason, count in chosen.problems.items()]
            size = record.width, record.height
            return AnnotatedImage(args.records.parent / record.images[0], size, [], problems), chosen.detections
    raise DataError(located("no record of the image", file=args.records, field="image_id", found=chosen.image_id))
