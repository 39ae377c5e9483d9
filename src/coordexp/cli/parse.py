"""Command `parse`: import the responses of an inference server."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, add_field, add_records, subparser
from coordexp.runtime.output_guard import check_output_file, is_predictions


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.recipe import Custom

    parser = subparser(
        commands,
        "parse",
        "Convert the responses of a vLLM, SGLang or transformers server to predictions.",
        "coordexp parse responses.jsonl --records results/lvis_768/data/val.jsonl --out predictions.jsonl",
    )
    parser.add_argument("responses", type=Path, metavar="JSONL", help="one response per line (docs/serving.md)")
    add_records(parser, "pixel-space records of the requests", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="file for the predictions")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="merged checkpoint whose codec and answer format are used",
    )
    add_field(parser, Custom, "emit_norm", default=None)
    add_field(parser, Custom, "answer_format", default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert the responses, and print the counts of problems."""
    from coordexp.inference.import_responses import import_responses

    check_output_file(args.out, is_predictions, args.responses, args.records)
    options = {"emit_norm": args.emit_norm, "answer_format": args.answer_format, "model_dir": args.model}
    for reason, count in import_responses(args.responses, args.records, args.out, **options).items():
        print(f"{reason}: {count}")
