"""Command `publish`: publish the checkpoint of a run with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "publish",
        "Publish the merged checkpoint of a run with a model card, to a folder or the Hugging Face Hub.",
        "coordexp publish results/shapes_9 --to ./published --dry-run",
        "coordexp publish results/lvis_768 --to owner/lvis-768",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of the run, results/{run}")
    parser.add_argument("--to", required=True, metavar="REPO_ID|FOLDER", help="owner/name on the hub, or a new folder")
    parser.add_argument("--license", metavar="ID", help="licence of the model, such as apache-2.0 (default: if known)")
    parser.add_argument("--data-license", metavar="TEXT", help="licence of the data, for the model card")
    parser.add_argument("--public", action="store_true", help="create a public repository (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="prepare and check the files, but publish nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Publish, and print the files and how to load them."""
    from coordexp.publishing.publish import publish
    from coordexp.runtime.notices import notice

    published = publish(
        args.run_dir,
        args.to,
        licence=args.license,
        data_licence=args.data_license,
        public=args.public,
        dry_run=args.dry_run,
    )
    for name, size in published.files.items():
        print(f"{size:>15,}  {name}")
    stated = {
        "model is not stated; pass --license": published.licence,
        "data is not stated; pass --data-license": published.data_licence,
    }
    for text in (text for text, licence in stated.items() if licence is None):
        notice(f"model card: the licence of the {text}")
    if args.dry_run:
        print(f"dry run: nothing was written to {published.target}")
        return
    revision = f", revision={published.revision!r}" if published.revision else ""
    print(f"published: {published.target}\nuse it with: Detector({published.target!r}{revision})")
