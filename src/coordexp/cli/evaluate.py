"""Command `evaluate`: score a file of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, add_field, add_records, subparser
from coordexp.runtime.output_guard import check_output_file, is_result


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.evaluation.external_predictions import PREDICTION_FORMATS
    from coordexp.evaluation.options import EvaluateOptions

    parser = subparser(
        commands,
        "evaluate",
        "Score predictions against COCO or LVIS annotations.",
        "coordexp evaluate --gt instances_val2017.json --pred predictions.jsonl --out eval.json",
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="JSON", help="annotations in COCO or LVIS format")
    parser.add_argument(
        "--pred", type=Path, required=True, metavar="FILE", help="predictions, in one of the formats of --format"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="file for the results")
    parser.add_argument(
        "--format",
        choices=PREDICTION_FORMATS,
        metavar="FORMAT",
        help=f"{', '.join(PREDICTION_FORMATS)} (docs/evaluation.md); default: coco for a JSON list, otherwise coordexp",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="name of the evaluated split, for the results; default: the one that the name of --records or --gt "
        "contains (val.jsonl, instances_val2017.json), otherwise none",
    )
    add_field(parser, EvaluateOptions, "subset")
    add_field(parser, EvaluateOptions, "on_bad")
    add_records(parser, "pixel-space records of the images to evaluate; other annotated images are ignored")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print the headline metrics."""
    from coordexp.datasets.folder_listing import split_of
    from coordexp.evaluation.evaluate import evaluate
    from coordexp.evaluation.external_predictions import default_format
    from coordexp.evaluation.options import EvaluateOptions
    from coordexp.reporting.report import headline, losses

    check_output_file(args.out, is_result, args.gt, args.pred, args.records)
    options = EvaluateOptions(subset=args.subset, on_bad=args.on_bad)
    split = args.split or split_of(args.records.name if args.records else "") or split_of(args.gt.name)
    names = {"dataset": args.gt.stem, "split": split, "format": args.format or default_format(args.pred)}
    evaluate(args.pred, args.gt, options, **names, out=args.out, records=args.records)
    print("\n".join([headline(args.out), *losses(args.out)]))
    print(f"wrote {args.out}")
