"""Removes the names of this machine's folders, and so of its user, from files that may be published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from coordexp.runtime.io import read_json, write_json, write_text

VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}  # whose entries look like paths


def portable_path(path: str | Path, beside: str | Path | None = None) -> str:
    """`path` relative to the working directory if it lies in it, otherwise only its name after `.../`.

    With `beside`, the file that will contain it, a path to the same tree of folders is relative to that file.
    """
    path = Path(path)
    for base in (Path.cwd(), Path.cwd().resolve()):
        if path.is_absolute() and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    if path.is_absolute() and beside is not None:
        folder = Path(beside).resolve().parent
        common = Path(os.path.commonpath([path, folder]))
        if common == Path.home() or not Path.home().is_relative_to(common):  # else folders of users would be named
            return Path(os.path.relpath(path, folder)).as_posix()
    return f".../{path.name}" if path.is_absolute() else path.as_posix()


def portable_paths(value: Any) -> Any:
    """The same JSON-compatible value with the absolute paths of this machine's files made portable, at any depth."""
    if isinstance(value, dict):
        return {key: portable_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable_paths(inner) for inner in value]
    return portable_path(value) if isinstance(value, str) and _exists(value) else value


def make_files_portable(folder: Path, *known: Path) -> None:
    """Make the paths in the JSON files of `folder`, and the `known` ones in its Markdown files, portable."""
    for file in sorted(folder.rglob("*.json")):
        if file.name not in VOCABULARIES:
            content = read_json(file)
            if (changed := portable_paths(content)) != content:
                write_json(file, changed)
    for file in sorted(folder.rglob("*.md")):
        before = text = file.read_text("utf-8")
        for path in known:
            text = text.replace(str(path), portable_path(path))
        if text != before:
            write_text(file, text)


def _exists(text: str) -> bool:
    try:
        return text.startswith("/") and len(Path(text).parts) > 2 and Path(text).exists()
    except (OSError, ValueError):  # longer than a path can be, or with a null character
        return False
