"""Command `summary`: print the headline metrics of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(commands, "summary", "Print the headline metrics of a run.", "coordexp summary results/shapes_9")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run with an eval.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the headline metrics, and the path of the report if it exists."""
    from coordexp.reporting.report import headline, losses
    from coordexp.runtime.errors import DataError, located

    if args.run_dir.is_file():
        fix = "name the folder of the run, for example results/shapes_9"
        raise DataError(located("not a folder", file=args.run_dir, fix=fix))
    print("\n".join([headline(args.run_dir / "eval.json"), *losses(args.run_dir / "eval.json")]))
    report = (args.run_dir / "report.html").resolve()
    if report.is_file():
        print(f"report: {report}")
