"""The `coordexp` command: CoordExp without Snakemake.

One module per command: `add` declares its options, `run` does its work.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from coordexp import __version__
from coordexp.cli import (
    app,
    compare,
    completion,
    crate,
    detect,
    doctor,
    evaluate,
    expand,
    export,
    init,
    merge,
    parse,
    predict,
    publish,
    row,
    serve,
    show,
    summary,
    train,
    validate,
)
from coordexp.cli.parser import Parser
from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.plugins import VARIABLE, load_plugins

COMMANDS = (
    init,
    show,
    expand,
    train,
    merge,
    doctor,
    validate,
    detect,
    predict,
    app,
    evaluate,
    compare,
    row,
    summary,
    export,
    serve,
    parse,
    publish,
    crate,
    completion,
)
EXIT_CODES = """\
exit codes:
  0    success
  1    `validate` found invalid records, or `expand` or `merge` cannot use the checkpoint
  2    wrong usage, or an input, output or model that cannot be used; the message says why
  130  interrupted (Ctrl-C)
  141  the program that reads the output, for example `head`, has closed the pipe
"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code (EXIT_CODES); a CoordExpError is printed."""
    plugins = plugin_parser()
    given, rest = plugins.parse_known_args(argv)
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that a command starts import nothing from the working directory
    try:
        _load(given.plugin)
        args = build_parser(plugins).parse_args(rest)
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that reads the output, for example `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes
        return 141
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder in place of a file, a missing folder, no permission, a full disk
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def plugin_parser() -> argparse.ArgumentParser:
    """The parser of `--plugin`, which is read before the commands declare their options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"Python file that registers plug-ins; may be repeated, in addition to ${VARIABLE}",
    )
    return parser


def build_parser(*parents: argparse.ArgumentParser) -> Parser:
    """The parser of the command line with all commands."""
    parser = Parser(
        prog="coordexp",
        description="CoordExp without Snakemake. `coordexp COMMAND --help` describes a command.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
    )
    parser.add_argument("--version", action="version", version=f"coordexp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _load(files: list[Path]) -> None:
    """Import plug-ins, and list them in the environment for the processes that this one starts."""
    listed = [*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)), *(str(file.resolve()) for file in files)]
    if listed:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(listed))
    load_plugins()
