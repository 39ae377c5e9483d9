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
    from coordexp.reporting import headline, losses

    print("\n".join([headline(args.run_dir / "eval.json"), *losses(args.run_dir / "eval.json")]))
    report = (args.run_dir / "report.html").resolve()
    if report.is_file():
        print(f"report: {report}")
