"""Outputs: only a folder or file that CoordExp wrote is ever replaced, and never an input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import atomic_dir, write_text

MARKER = ".coordexp"
PAGE_GENERATOR = '<meta name="generator" content="CoordExp">'  # in the head of every page
_HEAD = 4096  # bytes
# Files by which a folder of an earlier version, which has no marker, is recognised.
MANIFESTS: dict[str, tuple[str, ...]] = {
    "detect": (),
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


def check_output_file(out: str | Path | None, is_ours: Callable[[Path], bool], *inputs: str | Path | None) -> None:
    """ConfigError unless the output file `out` of a command is absent, empty, or an earlier output (`is_ours`).

    Inputs of the command, symbolic links and devices are refused as well. A folder is left to the function that writes.
    """
    if out is None or not (Path(out).exists() or Path(out).is_symlink()):
        return
    out, fix = Path(out), "choose another --out"
    for file in inputs:
        if file is not None and Path(file).exists() and out.exists() and out.samefile(file):
            raise ConfigError(located("the output would replace an input", file=out, fix=fix))
    if out.is_symlink() or not (out.is_file() or out.is_dir()):
        raise ConfigError(located("the output is a symbolic link or a device", file=out, fix=fix))
    if out.is_file() and out.stat().st_size and not is_ours(out):
        problem = "the output file exists and was not written by this command"
        raise ConfigError(located(problem, file=out, fix=f"{fix}, or move the file away"))


def is_result(path: Path) -> bool:
    """Whether a file is an eval.json or compare.json of any version."""
    content = _decoded(path.read_bytes())
    return isinstance(content, dict) and {"schema_version", "dataset", "split", "not_computed"} <= content.keys()


def is_predictions(path: Path) -> bool:
    """Whether the first line of a file is a prediction."""
    with path.open("rb") as lines:
        first = _decoded(lines.readline())
    return isinstance(first, dict) and {"image_id", "protocol", "finish", "detections"} <= first.keys()


def is_page(path: Path) -> bool:
    """Whether a file is a report or comparison page."""
    with path.open("rb") as file:
        return PAGE_GENERATOR.encode() in file.read(_HEAD)


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@contextlib.contextmanager
def output_dir(path: str | Path, stage: str) -> Iterator[Path]:
    """As `io.atomic_dir`, for an output of `stage`; ConfigError for a folder that must not be replaced."""
    refuse_foreign_folder(path, stage)
    with atomic_dir(path) as scratch:
        yield scratch
        write_text(scratch / MARKER, f"{stage}\n")
