"""Command `export`: write records or predictions in the format of another tool."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, add_image_folders, add_records, add_score_threshold, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.datasets.export import EXPORT_FORMATS

    parser = subparser(
        commands,
        "export",
        "Write records or predictions in the format of another tool, for example to pre-label images.",
        "coordexp export results/lvis_768/data/val.jsonl --to-format coco --out exported",
        "coordexp export results/lvis_768/eval/predictions.jsonl --records results/lvis_768/data/val.jsonl \\\n"
        "    --to-format label_studio --score-threshold 0.3 --out exported",
    )
    parser.add_argument("file", type=Path, metavar="JSONL", help="records or predictions")
    parser.add_argument(
        "--to-format",
        choices=EXPORT_FORMATS,
        required=True,
        metavar="FORMAT",
        help=f"format to write: {', '.join(EXPORT_FORMATS)}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for the result")
    add_records(parser)
    add_score_threshold(parser)
    add_image_folders(parser, "folder of source images to link into images/ of the result")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, and print the counts."""
    from coordexp.datasets.export import export

    options = {"records": args.records, "min_score": args.score_threshold, "image_dirs": args.images}
    counts = export(args.file, args.to_format, args.out, **options)
    for name, count in counts.items():
        print(f"{name}: {count:,}" if name in ("images", "boxes") else f"left out: {count:,} {name}")
    print(f"wrote {args.out}")
