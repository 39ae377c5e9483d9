"""Command `doctor`: show one record as the model sees it in training, or test whether a model uses the image."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from coordexp.cli.arguments import Commands, image_file, subparser
from coordexp.runtime.output_guard import check_output_file

if TYPE_CHECKING:
    from coordexp.evaluation.image_use import AnswerUse, ImageUse


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "doctor",
        "Show one record as the model sees it in training, or test whether a trained model uses the image.",
        "coordexp doctor results/shapes_9/data/train.coord.jsonl --index 3 --model results/models/tiny-coordexp",
        "coordexp doctor results/shapes_9/data/val.jsonl --image-use 50 --model results/shapes_9/merged",
    )
    parser.add_argument("file", type=Path, metavar="JSONL", help="records in pixel or token space")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="index of the record, from 0 (default: 0)")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="expanded base, or merged checkpoint"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe that sets the texts of prompt and answer")
    parser.add_argument(
        "--out", type=image_file, metavar="IMAGE", help="draw the boxes decoded from the tokens to this file"
    )
    parser.add_argument("--epoch", type=int, metavar="N", help="apply the recipe's augmentation of this epoch")
    parser.add_argument(
        "--image-use",
        type=int,
        metavar="N",
        help="instead of showing a record, compare the probability of the annotated coordinates and the answers of the "
        "first N records with the right image, another image and a blank one; needs a merged checkpoint and records in "
        "pixel space",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print prompt, answer, tokens and decoded boxes of the record; or, with --image-use, the comparison."""
    from coordexp.doctor import examine, image_use
    from coordexp.inference.draw import is_drawing
    from coordexp.recipe import Custom, load_recipe

    check_output_file(args.out, is_drawing, args.file, args.config)
    if args.image_use is not None:
        _print_image_use(*image_use(args.file, args.image_use, args.model))
        return
    custom = load_recipe(args.config).custom if args.config else Custom()
    report = examine(args.file, args.index, args.model, custom, args.out, args.epoch)
    print(f"prompt:\n{report['prompt']}\n\nanswer:\n{report['answer']}\n\ntokens (* supervised):")
    for (number, text, supervised), group in itertools.groupby(report["tokens"]):
        count = len(list(group))
        print(f"{'*' if supervised else ''}{text!r}:{number}" + (f" x{count}" if count > 1 else ""), end=" ")
    print("\n\nboxes decoded from the tokens, in pixels, and their IoU with the unquantised boxes:")
    for box in report["boxes"]:
        print(f"  {box['desc']}: {box['pixel']}  IoU {box['iou']}")
    if args.out:
        print(f"image: {args.out}")


def _print_image_use(coordinates: ImageUse, answers: AnswerUse) -> None:
    from coordexp.evaluation.image_use import caution

    names = ("the right image", "another image", "a blank image")
    print(
        f"mean log probability of {coordinates.coordinates:,} annotated coordinates in {coordinates.images:,} images, "
        "in nats:"
    )
    for name, value in zip(names, (coordinates.right, coordinates.other, coordinates.blank), strict=True):
        print(f"  with {name}: {value:.3f}")
    print(f"score of the answers to {answers.images:,} images (COCO AP; for phrases, exact_50):")
    for name, value in zip(names, (answers.right, answers.other, answers.blank), strict=True):
        print(f"  with {name}: {'undefined' if value is None else f'{value:.3f}'}")
    print(f"boxes that are the same with another image: {answers.agreement:.0%}")
    if text := caution(coordinates.gain, answers.agreement):
        print(
            f"{text}. Do not trust teacher-forced losses and errors; train longer, on more images, or with noise in "
            "the prefixes (custom.prefix)"
        )
    else:
        print(f"the model uses the image: it adds {coordinates.gain:.2f} nats per coordinate")
