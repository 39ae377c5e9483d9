"""Command `crate`: describe a run as an RO-Crate."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "crate",
        "Describe the files of a run and their provenance as an RO-Crate.\n\nWrites ro-crate-metadata.json "
        "(Workflow Run Crate) and a copy of the rules into the folder of the run.",
        "coordexp crate results/shapes_9",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run with an eval.json")
    parser.add_argument(
        "--workflow",
        type=Path,
        metavar="FOLDER",
        help="folder with the Snakefile of the run (default: the one whose results/ contains the run)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the metadata."""
    from coordexp.reporting.ro_crate import write_crate

    print(f"wrote {write_crate(args.run_dir, args.workflow)}")
