"""Command `validate`: check a JSONL file of records."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "validate",
        "Check every line of a JSONL file against the record format.",
        "coordexp validate results/lvis_768/data/train.jsonl --open-images",
    )
    parser.add_argument("file", type=Path, metavar="JSONL", help="records in any coordinate space")
    parser.add_argument("--open-images", action="store_true", help="also decode every image")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every problem of the file; exit code 1 if it has any."""
    from coordexp.datasets import validate as validation

    problems = validation.validate(args.file, open_images=args.open_images)
    for problem in problems:
        print(f"{args.file}: {problem}")
    print(f"{args.file}: {len(problems)} problem(s)")
    return 1 if problems else 0
