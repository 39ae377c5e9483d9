"""Command `app`: try a checkpoint in a web browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser
from coordexp.cli.images import add_model_options


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "app",
        "Try a merged checkpoint on your own images in a web browser. Needs: pip install 'coordexp[app]'.",
        "coordexp app results/shapes_9/merged",
    )
    parser.add_argument("model", metavar="MODEL", help="merged checkpoint: a folder, or owner/name on the hub")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on (default: 127.0.0.1, this machine only; 0.0.0.0: all network interfaces)",
    )
    parser.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="example images (default: validation images of the run, if the checkpoint is in its folder)",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the checkpoint and serve the app until Ctrl-C."""
    from coordexp import app
    from coordexp.inference.detector import Detector

    app.require_gradio()
    options = {"max_blocks": args.max_blocks, "polygons": args.polygons, "calibration": args.calibration}
    detector = Detector(args.model, revision=args.revision, device=args.device, **options)
    examples = app.example_images(detector.folder, args.examples)
    title = f"CoordExp: {app.shown_name(args.model)}"
    app.launch(detector, title=title, examples=examples, host=args.host, port=args.port)
