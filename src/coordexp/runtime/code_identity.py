"""Content hash of a module and of everything of this project that it imports, read from the source.

Snakemake sees neither the modules that a script imports nor, reliably, a script's content; a rule
that carries this hash in its params reruns exactly when code that it runs has changed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

SHIPPED = (".css", ".j2", ".js", ".json")  # what packages hold beside code: package-data in pyproject.toml
EMPTY = "Constant('')"


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


def own_code(entry: str) -> str:
    """`code_fingerprint` of a module of this package, as it runs."""
    return code_fingerprint(entry, (Path(__file__).resolve().parents[2],))


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
    """Templates and schemas of a package: files of its folder, and of folders in it that are no packages.

    Not what editors, file managers and NFS put beside them: backups have other suffixes, the rest is hidden.
    """
    inner = [p for p in folder.iterdir() if p.is_dir() and not (p / "__init__.py").exists()]
    found = [*folder.iterdir(), *(file for place in inner for file in place.rglob("*"))]
    return sorted(p for p in found if p.suffix in SHIPPED and p.is_file() and not _hidden(p.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


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
    """The code of a file without docstrings, comments and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Expr(ast.Constant(""))
    return spelled(tree)


def spelled(node: object) -> str:
    """Text of a syntax tree, the same under every Python: unlike `ast.dump`, without fields that are empty.

    Versions differ in which of those they have and show. A constant keeps its type, and a None that code names.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(spelled, node))}]"
    if isinstance(node, ast.Constant):  # `kind` tells u"" from "" alone
        return f"Constant({node.value!a})"
    if isinstance(node, ast.JoinedStr):  # 3.12 ends a format that is computed, as in {x:{width}}, with an empty text
        return f"JoinedStr({', '.join(part for part in map(spelled, node.values) if part != EMPTY)})"
    if isinstance(node, ast.AST):
        fields = [f"{name}={spelled(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return ascii(node)
