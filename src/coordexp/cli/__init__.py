"""The `coordexp` command: CoordExp without Snakemake.

One module per command: `add` declares its options, `run` does its work.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from coordexp.cli import compare, detect, doctor, evaluate, expand, export, init, merge, parse, summary, train, validate
from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.plugins import VARIABLE, load_plugins

COMMANDS = (init, expand, train, merge, doctor, validate, evaluate, compare, detect, export, parse, summary)


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code; a CoordExpError is printed and gives exit code 2."""
    plugins = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    plugins.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"Python file that registers plug-ins; may be repeated, in addition to ${VARIABLE}",
    )
    given, rest = plugins.parse_known_args(argv)
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that a command starts import nothing from the working directory
    try:
        _load(given.plugin)
        parser = argparse.ArgumentParser(prog="coordexp", description="CoordExp without Snakemake.", parents=[plugins])
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for command in COMMANDS:
            command.add(commands)
        args = parser.parse_args(rest)
        return args.run(args) or 0
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder in place of a file, a missing folder, no permission, a full disk
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _load(files: list[Path]) -> None:
    """Import plug-ins, and list them in the environment for the processes that this one starts."""
    listed = [*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)), *(str(file.resolve()) for file in files)]
    if listed:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(listed))
    load_plugins()
