"""Complete checkpoints: those with a completion marker, a file written after everything else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

COMPLETION_MARKER = "COMPLETE"


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted((path for path in _checkpoints(folder) if _is_complete(path)), key=step_of)


def remove_incomplete(folder: str | Path) -> None:
    """Delete checkpoints in `folder` that a killed process or a full disk left incomplete."""
    for checkpoint in _checkpoints(folder):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)


def rotate(folder: str | Path, limit: int | None, best: int | None) -> None:
    """Delete the oldest complete checkpoints in excess of `limit`, but never the newest or the one of step `best`.

    The completion marker is deleted first, so that a checkpoint whose deletion is interrupted is not complete.
    """
    complete = complete_checkpoints(folder)
    if not limit or limit < 0 or not complete:
        return
    kept = {complete[-1], *(path for path in complete if step_of(path) == best)}
    candidates = [path for path in complete if path not in kept]
    for checkpoint in candidates[: max(len(complete) - max(limit, len(kept)), 0)]:
        (checkpoint / COMPLETION_MARKER).unlink(missing_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETION_MARKER).is_file()


def _checkpoints(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
