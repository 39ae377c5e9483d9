"""Command `merge`: merge an adapter named by environment variables."""

from __future__ import annotations

import argparse
import os

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "merge",
        "Merge LoRA, DoRA and coordinate offsets into a plain checkpoint.\n\nThe environment sets ADAPTERS (the result "
        "of training, or a folder or glob of checkpoints) and\nOUTPUT_DIR, and optionally BASE, BEST=1, "
        "ALLOW_OVERWRITE=1 and GPU_DEVICES.",
        "ADAPTERS=out/adapter OUTPUT_DIR=out/merged ALLOW_OVERWRITE=1 coordexp merge",
    )
    parser.add_argument(
        "--best", action="store_true", help="merge the best checkpoint, not the newest (same as BEST=1)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge the adapter that the environment names."""
    from coordexp.modeling.merge import merge_from_env

    return merge_from_env({**os.environ, "BEST": "1"} if args.best else None)
