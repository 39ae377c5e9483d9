"""Command `merge`: merge the result of training into its base."""

from __future__ import annotations

import argparse
import os

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "merge",
        "Merge LoRA, DoRA and coordinate offsets into a plain checkpoint.\n\nThe environment variables ADAPTERS, "
        "OUTPUT_DIR, BASE, BEST=1 and ALLOW_OVERWRITE=1 are alternatives to\nthe options, which take precedence; "
        "GPU_DEVICES is ignored. Exit code 1 if the merge is impossible.",
        "coordexp merge out/adapter --out out/merged",
        "ADAPTERS='out/checkpoints/*' OUTPUT_DIR=out/merged ALLOW_OVERWRITE=1 coordexp merge --best",
    )
    parser.add_argument(
        "adapters",
        nargs="*",
        metavar="ADAPTER",
        help="training result, checkpoint-N folder, or a folder or quoted glob of these, of which the newest is merged "
        "($ADAPTERS)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder of the merged checkpoint ($OUTPUT_DIR)")
    parser.add_argument(
        "--model", metavar="FOLDER", help="expanded base checkpoint (default: $BASE, or the one that training recorded)"
    )
    parser.add_argument("--best", action="store_true", help="merge the best checkpoint instead of the newest ($BEST)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier merge ($ALLOW_OVERWRITE)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge the adapter that the options, or else the environment, name."""
    from coordexp.modeling.merge import flag, merge_and_report

    return merge_and_report(
        args.adapters or os.environ.get("ADAPTERS", "").split(),
        args.out or os.environ.get("OUTPUT_DIR"),
        args.model or os.environ.get("BASE"),
        allow_overwrite=args.overwrite or flag(os.environ, "ALLOW_OVERWRITE"),
        best=args.best or flag(os.environ, "BEST"),
    )
