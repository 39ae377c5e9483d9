"""Command `predict`: write the predictions for image files to a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser
from coordexp.cli.images import add_detector_options, category_names, detector_of, expanded
from coordexp.runtime.output_guard import check_output_file, is_predictions


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "predict",
        "Write predictions for image files, for `evaluate` and other tools.\n\nTo resume after an interruption, "
        "run the same command again. Image ids are paths\nrelative to the folder that contains all images; "
        "with --gt, they are the ids in that file.",
        "coordexp predict val2017/ --gt instances_val2017.json --model results/coco_768/merged --out predictions.jsonl",
    )
    add_detector_options(parser)
    parser.add_argument("--gt", type=Path, metavar="JSON", help="annotations in COCO or LVIS format, for image ids")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="file for the predictions")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Predict, and print the counts."""
    from coordexp.inference.image_sources import image_sources
    from coordexp.inference.predict_images import annotated_ids, predict_images

    images = expanded(args.images)
    check_output_file(args.out, is_predictions, *images, args.calibration, args.gt)
    categories = category_names(args.categories)
    detector = detector_of(args)
    sources = image_sources(images)
    base = os.path.commonpath([Path(source.name).absolute().parent for source in sources])
    names = [Path(source.name).absolute().relative_to(base).as_posix() for source in sources]
    ids = annotated_ids(args.gt, sources) if args.gt else names
    counts = predict_images(detector, sources, ids, args.out, categories, args.phrases)
    print(f"wrote {args.out}: {len(sources)} images, {counts['objects']:.0f} objects in this run")
