"""Command `expand`: add or check the coordinate tokens of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from coordexp.cli.arguments import Commands, subparser
from coordexp.runtime.errors import ConfigError, CoordExpError


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.modeling.embedding_init import Init

    parser = subparser(
        commands,
        "expand",
        "Add the coordinate tokens to a checkpoint, or check them if --out is not given.\n\nThe check covers the ids, "
        "the encoding and decoding of an answer, the embedding table\nand the recorded tokenizer. Exit code 1 if a "
        "check fails or the checkpoint is unsuitable.",
        "coordexp expand models/Qwen3-VL-4B-Instruct --out models/qwen-coordexp",
        "coordexp expand models/qwen-coordexp",
    )
    parser.add_argument("base", type=Path, metavar="FOLDER", help="checkpoint with tokenizer.json and safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the new checkpoint; must not exist")
    choices = get_args(Init)
    parser.add_argument(
        "--init",
        default="numeric",
        choices=choices,
        metavar="|".join(choices),
        help="initialisation of the new embedding rows (default: numeric)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Add or check the coordinate tokens; exit code 1 if the checkpoint is unsuitable."""
    from coordexp.modeling import vocab

    if args.out and args.out.exists():
        raise ConfigError(f"{args.out}: output folder already exists\n  -> choose another --out")
    try:
        facts = vocab.expand(args.base, args.out, args.init) if args.out else vocab.check(args.base)
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ids = f"<|coord_*|> is {facts['wildcard']}, <|coord_0|>..<|coord_999|> are {facts['start']}..{facts['end']}"
    rows, tokenizer = facts["vocab_size"], facts["tokenizer_sha256"][:12]
    print(f"{args.out or args.base}: {ids}, {rows} rows, tokenizer {tokenizer}")
    return 0
