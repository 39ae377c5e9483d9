"""The argument parser of the commands: argparse, with suggestions for mistyped commands and options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from coordexp.runtime.errors import nearest

_INVALID_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<choices>.*)\)")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors suggest the closest command, option or choice."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._given: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse; an unknown option of a command is an error of the command, which lists its usage."""
        self._given = list(args or ())
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown and not self._subparsers:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after printing the usage, the message and suggestions."""
        hints = [] if self._subparsers else self._mistyped_options()
        invalid = _INVALID_CHOICE.search(message)
        if invalid:
            hints.append(nearest(invalid["given"], [choice.strip("' ") for choice in invalid["choices"].split(",")]))
        super().error("".join([message, *filter(None, hints)]))

    def _mistyped_options(self) -> list[str]:
        """A suggestion for every word on the command line that looks like an option but is none."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        words = [word.split("=")[0] for word in self._given if re.match(r"--[A-Za-z]", word)]
        unknown = [word for word in words if not any(name.startswith(word) for name in known)]
        return [f"; {word}{hint}" for word in unknown if (hint := nearest(word, known))]
