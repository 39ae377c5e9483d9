"""Streams the elements of a JSON list, so that memory does not grow with the size of the file."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from coordexp.datasets.formats.entries import open_text
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError, located

_SPECIAL = re.compile(rb'["{}\[\],\\]')
_SPACE = b" \t\r\n"


def json_array(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, text) of each element of a JSON list; DataError if the file is not a complete list.

    An element may still be invalid JSON; the caller parses it.
    """
    with open_text(path) as handle:
        scanner = _Scanner(path)
        while data := handle.read(tuning.JSON_READ_BYTES):
            yield from scanner.feed(data)
        scanner.finish()


class _Scanner:
    """Splits a JSON list at its commas. depth: of the brackets, 1 between elements, 0 outside the list."""

    def __init__(self, path: Path):
        self.path, self.depth, self.in_string, self.closed = path, 0, False, False
        self.rest, self.scanned, self.line = b"", 0, 1
        self.started = self.any = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The elements that are complete after `data`."""
        if self.closed:
            self.finish()  # what follows the list is space
            self.rest = b""
        self.rest += data
        if not self.started:
            self._open()
        start, end = 0, len(self.rest) - 1 if self.rest.endswith(b"\\") else len(self.rest)
        position = self.scanned
        while match := _SPECIAL.search(self.rest, position, end):
            char, at, position = match.group(), match.start(), match.end()
            if char == b"\\":
                position += 1  # the escaped character
            elif char == b'"':
                self.in_string = not self.in_string
            elif self.in_string or self.closed:
                continue
            elif char in b"{[":
                self.depth += 1
            elif char in b"}]":
                self.depth -= 1
                self.closed = self.depth == 0
                if self.closed:
                    yield from self._element(self.rest[start:at], last=True)
                    start = position
            elif self.depth == 1:
                yield from self._element(self.rest[start:at])
                start = position
        self.rest, self.scanned = self.rest[start:], max(position, end) - start

    def finish(self) -> None:
        """DataError unless the list is closed and nothing follows."""
        if not self.started or not self.closed or self.rest.strip(_SPACE):
            problem = "text after the list" if self.closed else "the list is not closed: the file is truncated"
            raise DataError(located(problem, file=self.path, line=self.line, fix="write the file again"))

    def _open(self) -> None:
        text = self.rest.removeprefix(BOM_UTF8).lstrip(_SPACE)
        if not text.startswith(b"["):
            fix = "write one JSON list, or give JSON lines the suffix .jsonl"
            found = text[:20].decode("latin1")
            raise DataError(located("not a JSON list", file=self.path, line=1, expected="[", found=found, fix=fix))
        self.line += self.rest[: len(self.rest) - len(text)].count(b"\n")
        self.rest, self.depth, self.started = text[1:], 1, True

    def _element(self, text: bytes, last: bool = False) -> Iterator[tuple[int, bytes]]:
        element = text.lstrip(_SPACE)
        line = self.line + text[: len(text) - len(element)].count(b"\n")
        self.line += text.count(b"\n")
        if element or self.any or not last:
            yield line, element.rstrip(_SPACE)
        self.any = True
