"""Outputs: only a folder that the same stage of CoordExp wrote is ever replaced, and never an input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import atomic_dir, write_text

MARKER = ".coordexp"
# Files by which a folder of an earlier version, which has no marker, is recognised.
MANIFESTS = {
    "expand": ("coord_tokens.json", "model_source.json"),
    "fetch": ("model_source.json",),
    "merge": ("merge_manifest.json",),
    "train": ("train_manifest.json",),
}


def is_output(path: str | Path, stage: str) -> bool:
    """Whether `path` is a folder that `stage`, a key of MANIFESTS, wrote."""
    path = Path(path)
    marker = path / MARKER
    if marker.is_file():
        return marker.read_text("utf-8", errors="replace").strip() == stage
    return any((path / name).is_file() for name in MANIFESTS[stage])


def refuse_foreign_folder(path: str | Path, stage: str) -> None:
    """ConfigError unless `path` is absent, an empty folder, or an earlier output of `stage`.

    Symbolic links, files, the current folder and its parents are refused as well.
    """
    path = Path(path)
    fix = "choose a new folder for the output"
    if Path.cwd().resolve().is_relative_to(path.resolve()):
        raise ConfigError(located("the output folder is the current folder or contains it", file=path, fix=fix))
    if path.is_symlink():
        raise ConfigError(located("the output folder is a symbolic link", file=path, fix=fix))
    if path.exists() and not path.is_dir():
        raise ConfigError(located("the output folder is a file", file=path, fix=fix))
    if path.exists() and any(path.iterdir()) and not is_output(path, stage):
        problem = f"the output folder is not empty and was not written by `{stage}` of CoordExp"
        raise ConfigError(located(problem, file=path, fix=f"{fix}, or move this one elsewhere"))


def refuse_input(out: str | Path | None, *inputs: str | Path | None) -> None:
    """ConfigError if the output file of a command is also one of its inputs."""
    if out is None:
        return
    for file in inputs:
        if file is not None and Path(file).exists() and Path(out).exists() and Path(out).samefile(file):
            raise ConfigError(located("the output would replace an input", file=out, fix="choose another --out"))


@contextlib.contextmanager
def output_dir(path: str | Path, stage: str) -> Iterator[Path]:
    """As `io.atomic_dir`, for an output of `stage`; ConfigError for a folder that must not be replaced."""
    refuse_foreign_folder(path, stage)
    with atomic_dir(path) as scratch:
        yield scratch
        write_text(scratch / MARKER, f"{stage}\n")
