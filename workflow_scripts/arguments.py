"""The command line of a rule's script: typed `--name value` pairs, all required."""

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
    """Parsed arguments; a kind in a list takes any number of values. `config` is canonical JSON of the rule's keys."""
    parser = argparse.ArgumentParser(description=description)
    for name, kind in kinds.items():
        many = isinstance(kind, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}", required=True, type=kind[0] if many else kind, nargs="*" if many else None
        )
    return parser.parse_args()


ROOT = Path(__file__).resolve().parents[1]
config = json.loads
path = Path


def limit_threads(threads: int) -> None:
    """Hold numerical libraries to the rule's threads; call it before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def job(output: Path):
    """Alone at work on `output`; a mistake of the user's or a full disk ends in plain words and exit code 1."""
    from coordexp.runtime.errors import CoordExpError
    from coordexp.runtime.locks import disk_is_full, full_disk, sole_writer

    try:
        with sole_writer(output):
            yield
    except CoordExpError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not disk_is_full(error, output.parent):
            raise
        sys.exit(f"error: {full_disk(output.parent, error)}")
