"""Shared by the scripts of all rules: command line, plug-ins, thread limits and error messages."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def arguments(description: str | None, **kinds: Callable[[str], Any] | list) -> argparse.Namespace:
    """Parsed `--name value` pairs, all required; the plug-ins in `$COORDEXP_PLUGINS` are imported.

    kinds: the type of each argument; a type in a list accepts any number of values. `config` is the canonical JSON of
    the options that the rule reads.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, kind in kinds.items():
        many = isinstance(kind, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}", required=True, type=kind[0] if many else kind, nargs="*" if many else None
        )
    args = parser.parse_args()
    from coordexp.runtime.errors import CoordExpError
    from coordexp.runtime.plugins import load_plugins

    try:
        load_plugins()
    except CoordExpError as error:
        sys.exit(f"error: {error}")
    return args


ROOT = Path(__file__).resolve().parents[1]
config = json.loads
path = Path


def limit_threads(threads: int) -> None:
    """Limit the threads of numerical libraries to those of the rule; call this before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def job(output: Path):
    """Lock `output` for this job; a CoordExpError or a full disk ends the job with a message and exit code 1."""
    from coordexp.runtime.errors import CoordExpError
    from coordexp.runtime.locks import disk_is_full, full_disk, sole_writer

    try:
        with sole_writer(output):
            yield
    except CoordExpError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run the same command again to continue")
    except Exception as error:
        if not disk_is_full(error, output.parent):
            raise
        sys.exit(f"error: {full_disk(output.parent, error)}")
