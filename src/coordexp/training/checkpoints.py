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


def rotate(folder: str | Path, limit: int | None, best: int | None) -> None:
    """Delete the oldest whole checkpoints over `limit`, never the newest nor the one of step `best`.

    A mark goes before the rest, so that a kill on the way leaves nothing that is torn and yet counts.
    """
    whole = whole_checkpoints(folder)
    if not limit or limit < 0 or not whole:
        return
    kept = {whole[-1], *(p for p in whole if step(p) == best)}
    old = [p for p in whole if p not in kept]
    for checkpoint in old[: max(len(whole) - max(limit, len(kept)), 0)]:
        (checkpoint / MARK).unlink(missing_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)


def step(checkpoint: Path) -> int:
    """The optimisation step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _checkpoints(folder: str | Path) -> list[Path]:
    return [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
