"""Which checkpoints can be trusted: those with a mark that is written after everything else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

MARK = "COMPLETE"


def whole_checkpoints(folder: str | Path) -> list[Path]:
    """Marked checkpoints in `folder`, oldest first."""
    return sorted((p for p in _checkpoints(folder) if (p / MARK).is_file()), key=step)


def drop_broken(folder: str | Path) -> None:
    """Delete checkpoints in `folder` that a killed process or a full disk left without a mark."""
    for checkpoint in _checkpoints(folder):
        if not (checkpoint / MARK).is_file():
            shutil.rmtree(checkpoint)


def step(checkpoint: Path) -> int:
    """The optimisation step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _checkpoints(folder: str | Path) -> list[Path]:
    return [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
