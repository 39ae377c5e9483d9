"""Before a checkpoint is written: how many of its shards and how much disk; SpaceError when there is no room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from coordexp.runtime.estimates import announce, there


def forecast(what: str, out: Path, shards: Mapping[str, int], linked: Iterable[Path], beside: int = 0) -> None:
    """Announce stage `what`, which writes `shards` (name: bytes) and `beside` more bytes, and links other files."""
    linked = list(linked)
    copies = copied_bytes(linked, out)
    total = len(shards) + sum(file.suffix == ".safetensors" for file in linked)
    basis = "other files are copied: another file system" if copies else "other files are linked"
    size = sum(shards.values()) + beside + copies
    announce(what, len(shards), f"of {total} shards to write", folder=out, size=size, basis=basis)


def copied_bytes(files: Iterable[Path], folder: Path) -> int:
    """Bytes that hard links to `files` take in `folder`: none on the same file system, copies on another one."""
    device = there(folder).stat().st_dev
    return sum(found.st_size for found in (file.stat() for file in files) if found.st_dev != device)
