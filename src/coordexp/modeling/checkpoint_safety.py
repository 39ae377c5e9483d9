"""Refuses checkpoint folders that must not be opened: absent ones, those with code, and malformed ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from coordexp.modeling.checkpoint_config import check_config, read_object
from coordexp.runtime.errors import CoordExpError, ModelError, located

MAX_FILES = 20_000
MAX_JSON = 256 << 20  # bytes; the largest tokenizer.json of a published model has 34 MB
OBJECTS = (  # files that transformers reads as JSON objects
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("vocab.json", "chat_template.json", "coord_tokens.json", "merge_manifest.json", "adapter_config.json"),
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# What trainers leave in a checkpoint to resume from it, in pickle files and scripts that CoordExp does not read.
TRAINING_STATE = (
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin"),
    *("global_step*/*", "zero_to_*.py", "pytorch_model_fsdp*", "optimizer_*/*"),
)


def check_checkpoint(folder: str | Path, *, trained: bool = False, only: Iterable[Path] | None = None) -> Path:
    """The folder of a local checkpoint; ModelError for a folder that must not be opened.

    Refused are: a folder that does not exist (libraries ask a model hub for a repository of that name); `auto_map` at
    any depth of a JSON file; Python files; pickled weights; FIFOs, sockets and devices; an implausible or malformed
    configuration. `trained` is a result of training, which may also be an adapter. `only` limits the check to these
    files of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fix = "pass the folder of a local checkpoint; repository names are never looked up"
        raise ModelError(located("no such checkpoint folder", file=folder, fix=fix))
    for file in _files(folder) if only is None else only:
        _check_file(file, str(file.relative_to(folder)))
    for name in OBJECTS:
        if (folder / name).is_file() and name != "tokenizer.json":  # which its readers validate
            read_object(folder / name)
    if not trained and (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
        problem, fix = (
            "the folder contains a model and an adapter",
            "merge the adapter, or remove adapter_config.json from the folder",
        )
        raise ModelError(located(problem, file=folder / "adapter_config.json", fix=fix))
    if (folder / "config.json").is_file():
        check_config(folder / "config.json")
    return folder


@contextlib.contextmanager
def library_errors(action: str, folder: str | Path) -> Iterator[None]:
    """Raise a library's error about a checkpoint as a ModelError, except for lack of memory or disk, and Ctrl-C."""
    try:
        yield
    except BaseException as error:
        name = type(error).__name__
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
        expected = isinstance(error, Exception) or name == "PanicException"  # of a library in Rust
        if not expected or full or isinstance(error, CoordExpError | MemoryError) or name == "OutOfMemoryError":
            raise
        reason = " ".join(str(error).split())[:500]
        fix = "fetch or create the checkpoint again"
        raise ModelError(located(f"cannot {action}: {name}: {reason}", file=folder, fix=fix)) from error


def _files(folder: Path) -> list[Path]:
    """All files below a folder; linked subfolders are not entered."""
    found = []
    for root, _, names in os.walk(folder):
        found += [Path(root, name) for name in sorted(names)]
        if len(found) > MAX_FILES:
            fix = "pass the folder of a single checkpoint"
            raise ModelError(located("the folder has too many files", file=folder, expected=f"<= {MAX_FILES}", fix=fix))
    return found


def _check_file(file: Path, name: str) -> None:
    try:
        found = file.stat()
    except OSError:  # a link to nothing, which nobody can read either
        return
    if not stat.S_ISREG(found.st_mode):
        problem, fix = "a FIFO, socket or device in a checkpoint", "remove it"
        if not stat.S_ISDIR(found.st_mode):
            raise ModelError(located(problem, file=file, fix=fix))
        return
    if file.suffix == ".json":
        if found.st_size > MAX_JSON:
            raise ModelError(located("implausibly large", file=file, expected=f"<= {MAX_JSON}", found=found.st_size))
        if _has_auto_map(file):
            fix = "use a checkpoint of a model family that transformers implements itself"
            problem = "the checkpoint contains code (`auto_map`), which is never run"
            raise ModelError(located(problem, file=file, fix=fix))
    if any(fnmatch(name, f"{prefix}{pattern}") for pattern in TRAINING_STATE for prefix in ("", "*/")):
        return
    if file.suffix in (".py", ".pyc", ".so"):
        fix = "use a checkpoint of a model family that transformers implements itself, or remove the file"
        raise ModelError(located("the checkpoint contains code, which is never run", file=file, fix=fix))
    if file.suffix in PICKLES:
        problem, fix = "pickled weights, which may contain code", "convert them to safetensors, and remove the file"
        raise ModelError(located(problem, file=file, fix=fix))


def _has_auto_map(file: Path) -> bool:
    content = file.read_bytes()
    if b"auto_map" not in content and b"\\u" not in content:  # a key may be written with escapes
        return False
    try:
        return _contains(json.loads(content))
    except (ValueError, RecursionError):
        return b"auto_map" in content


def _contains(content: Any) -> bool:
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                return True
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return False
