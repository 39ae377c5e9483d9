"""Notices: messages that a user must see even if the job succeeds; they go to the log of the job and to the console.

A rule that redirects stderr to its log passes the console as file descriptor `$COORDEXP_CONSOLE_FD`.
"""

from __future__ import annotations

import contextlib
import os
import sys

CONSOLE_FD = "COORDEXP_CONSOLE_FD"


def notice(text: str) -> None:
    """Write one notice to stderr and, if it is another file, to the console."""
    print(text, file=sys.stderr, flush=True)
    console(text)


def console(text: str) -> None:
    """Write one line to the console of a rule whose stderr is its log."""
    with contextlib.suppress(KeyError, ValueError, OSError):
        os.write(int(os.environ[CONSOLE_FD]), f"{text}\n".encode())
