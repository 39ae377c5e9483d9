"""Errors a person can act on: where, what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class CoordExpError(Exception):
    """Base of every error that this package raises on purpose; its text is for people."""


class ConfigError(CoordExpError):
    """A configuration that cannot be used: unknown key, wrong type, cycle in `extends`."""


class DataError(CoordExpError):
    """A data file, record or image that breaks the contract."""


class ModelError(CoordExpError):
    """A checkpoint, adapter or tokenizer that does not fit."""


class DownloadError(CoordExpError):
    """A file that could not be fetched or does not have the promised content."""


class SpaceError(CoordExpError):
    """A stage that would fill the disk."""


def located(
    problem: str,
    *,
    file: str | Path | None = None,
    line: int | None = None,
    field: str | None = None,
    expected: object = None,
    found: object = None,
    fix: str | None = None,
) -> str:
    """Text of an error in one layout: `file:line: field: problem; expected ..., found ... -> fix`."""
    where = ":".join(str(part) for part in (file, line) if part is not None)
    head = ": ".join(part for part in (where, field, problem) if part)
    facts = [f"{name} {value!r}" for name, value in (("expected", expected), ("found", found)) if value is not None]
    text = "; ".join([head, ", ".join(facts)]) if facts else head
    return f"{text}\n  -> {fix}" if fix else text


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
