"""Refuses checkpoint folders that must not be opened: absent ones, and those that ask to run code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coordexp.runtime.errors import ModelError, located


def check_checkpoint(folder: str | Path) -> Path:
    """The folder of a local checkpoint; ModelError if it does not exist or a JSON file in it contains `auto_map`.

    Libraries that are given a name instead of an existing folder ask a model hub for a repository of that name, and
    ms-swift reads configurations with `trust_remote_code=True`. Subfolders are searched as well, and `auto_map` is
    found at any depth of a file. Files that are not JSON are left to their readers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fix = "pass the folder of a local checkpoint; repository names are never looked up"
        raise ModelError(located("no such checkpoint folder", file=folder, fix=fix))
    for file in sorted(folder.rglob("*.json")):
        if file.is_file() and _has_auto_map(file):
            fix = "use a checkpoint of a model family that transformers implements itself"
            problem = "the checkpoint contains code (`auto_map`), which is never run"
            raise ModelError(located(problem, file=file, fix=fix))
    return folder


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
