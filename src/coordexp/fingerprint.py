"""Content hash of a module and of everything of this project that it imports, read from the source.

Snakemake sees neither the modules that a script imports nor, reliably, a script's content; a rule
that carries this hash in its params reruns exactly when code that it runs has changed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path


def code_fingerprint(entry: str, roots: tuple[Path, ...]) -> str:
    """Hex digest for the dotted module `entry`, looked up under `roots`; comments and layout do not count.

    Templates and schemas that lie in the packages of the modules count byte for byte.
    """
    digest = hashlib.sha256()
    places = {name: _locate(name, roots) for name in sorted(closure(entry, roots))}
    for name, path in places.items():
        digest.update(name.encode() + b"\0" + _normalised(path).encode() + b"\0")
    for folder in sorted({path.parent for path in places.values()} - set(roots)):
        for file in _data_files(folder):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def closure(entry: str, roots: tuple[Path, ...]) -> frozenset[str]:
    """Every module of this project that `entry` imports, directly or not, and `entry` itself."""
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in seen or _locate(name, roots) is None:
            continue
        seen.add(name)
        waiting += _imports(_locate(name, roots), name)
        waiting += [name.rsplit(".", 1)[0]] if "." in name else []
    return frozenset(seen)


def _data_files(folder: Path) -> list[Path]:
    """Templates and schemas of a package: files of its folder, and of folders in it that are no packages."""
    inner = [p for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__" and not (p / "__init__.py").exists()]
    found = [*folder.iterdir(), *(file for place in inner for file in place.rglob("*"))]
    return sorted(p for p in found if p.is_file() and p.suffix not in (".py", ".pyc"))


def _locate(name: str, roots: tuple[Path, ...]) -> Path | None:
    for root in roots:
        base = root.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


@functools.cache
def _imports(path: Path, name: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@functools.cache
def _normalised(path: Path) -> str:
    """The syntax tree without docstrings, comments and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Expr(ast.Constant(""))
    return ast.dump(tree)
