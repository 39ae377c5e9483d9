"""Options of the commands."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Commands = Any  # what `ArgumentParser.add_subparsers` returns; argparse does not export its type


def subparser(commands: Commands, name: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """The parser of a new command; the first sentence of `description` is its line in `coordexp --help`."""
    return commands.add_parser(
        name,
        help=description.split(".")[0],
        description=description,
        epilog="\n  ".join(["example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_field(
    parser: argparse.ArgumentParser, struct: type[msgspec.Struct], name: str, option: str | None = None, **given: Any
) -> None:
    """Add `option` (default: --name) for a field of an options struct, with its description, choices and default."""
    field = next(field for field in msgspec.structs.fields(struct) if field.name == name)
    kind, *metas = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    settings: dict[str, Any] = {"help": next((meta.description for meta in metas if meta.description), None)}
    if kind is bool:
        settings["action"] = "store_true"
    elif get_origin(kind) is Literal:
        settings |= {"choices": get_args(kind), "default": field.default, "metavar": "|".join(get_args(kind))}
    else:
        settings |= {"type": kind, "default": field.default}
    parser.add_argument(option or f"--{name.replace('_', '-')}", dest=name, **settings | given)


def add_score_threshold(parser: argparse.ArgumentParser) -> None:
    """Add `--score-threshold`, the same in every command."""
    parser.add_argument(
        "--score-threshold",
        "--min-score",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="omit predictions with a lower score (default: 0)",
    )


def add_records(
    parser: argparse.ArgumentParser, help: str = "records of the predicted images", *, required: bool = False
) -> None:
    """Add `--records`, a file of records."""
    parser.add_argument("--records", type=Path, required=required, metavar="JSONL", help=help)


def add_image_folders(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--images`, folders of source images, as a list."""
    parser.add_argument(
        "--images", type=Path, action="append", default=[], metavar="FOLDER", help=f"{help}; may be repeated"
    )


def image_file(text: str) -> Path:
    """The path of an image to write, for `type=`; its suffix decides the format."""
    path = Path(text)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in {', '.join(IMAGE_SUFFIXES)}")
    return path
