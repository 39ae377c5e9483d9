"""Errors for users: each states where the problem is, what was expected, what was found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTED_PROBLEMS = 20


class CoordExpError(Exception):
    """Base of every error that this package raises on purpose; its arguments are only text for users."""


class ConfigError(CoordExpError):
    """An invalid configuration: unknown key, wrong type, circular `extends`."""


class DataError(CoordExpError):
    """An invalid data file, record or image."""


class ModelError(CoordExpError):
    """A checkpoint, adapter or tokenizer that is invalid or does not match another."""


class DownloadError(CoordExpError):
    """A file that could not be downloaded, or has other content than expected."""


class SpaceError(CoordExpError):
    """A stage that needs more disk space than is free."""


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
    """Text of an error in one format: `file:line: field: problem; expected ..., found ... -> fix`."""
    where = ":".join(str(part) for part in (file, line) if part is not None)
    head = ": ".join(part for part in (where, field, problem) if part)
    facts = [f"{name} {value!r}" for name, value in (("expected", expected), ("found", found)) if value is not None]
    text = "; ".join([head, ", ".join(facts)]) if facts else head
    return f"{text}\n  -> {fix}" if fix else text


def listed(problems: Sequence[str]) -> str:
    """One problem as it is; of several, their number and the first LISTED_PROBLEMS of them, each on a line."""
    if len(problems) == 1:
        return problems[0]
    more = f", the first {LISTED_PROBLEMS} of them" if len(problems) > LISTED_PROBLEMS else ""
    return "\n  ".join([f"{len(problems):,} problems{more}:", *problems[:LISTED_PROBLEMS]])


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
