"""Removes the names of this machine's folders, and so of its user, from files that may be published."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordexp.runtime.io import read_json, write_json, write_text

VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}  # whose entries look like paths
_LOCATION = re.compile(r"(?:file:/{2,}|(?<![\w/.~-])/)(?!/)(?:[^/\s\"'<>|,;:]+/)+")  # directories of a path


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


def replace_paths(value: Any, rule: Callable[[str], str]) -> Any:
    """The same JSON-compatible value with `rule` applied to every text, including the keys, at any depth."""
    if isinstance(value, dict):
        return {replace_paths(key, rule): replace_paths(inner, rule) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_paths(inner, rule) for inner in value]
    return rule(value) if isinstance(value, str) else value


def recorded(text: str) -> str:
    """Rule for manifests: the absolute path of an existing file becomes portable, other text stays as it is."""
    return portable_path(text) if text.startswith("/") and len(Path(text).parts) > 2 and _exists(text) else text


def shown(text: str) -> str:
    """Rule for pages: no absolute path, also within a sentence, because it would publish home folders and user names.

    Paths in the working directory become relative; of others only the last part stays, after `.../`.
    """
    text = text.replace(f"{Path.cwd()}/", "").replace(f"{Path.home()}/", "/~/")
    path = Path(text)
    if path.is_absolute():  # also with spaces
        return f".../{path.name}"
    return _LOCATION.sub(".../", text)


def published(text: str) -> str:
    """Rule for published files: as `shown`, and of the relative path of an existing file only the last part stays."""
    if "/" in text and not text.startswith("/") and _exists(text):
        return f".../{Path(text).name}"
    return shown(text)


def make_files_portable(folder: Path, *known: Path) -> None:
    """Make the paths in the JSON files of `folder`, and the `known` ones in its Markdown files, portable."""
    for file in sorted(folder.rglob("*.json")):
        if file.name not in VOCABULARIES:
            content = read_json(file)
            if (changed := replace_paths(content, recorded)) != content:
                write_json(file, changed)
    for file in sorted(folder.rglob("*.md")):
        before = text = file.read_text("utf-8")
        for path in known:
            text = text.replace(str(path), portable_path(path))
        if text != before:
            write_text(file, text)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than a path can be, or with a null character
        return False
