"""Identities of code and of inputs, by which rules, caches and resumed jobs detect changes.

`code_identity`
    of a module: its source and that of everything of this project that it imports, as normalised by
    `normalised_source`. Comments, docstrings, formatting, error and progress messages do not count. Nor does
    `coordexp.runtime`, infrastructure that no result depends on. Templates and schemas in the packages of the
    modules count byte for byte. A plug-in (`$COORDEXP_PLUGINS`) counts where a module is used that it imports.
`content_identity`
    of files: a hash of the bytes, or of header, size and samples of a safetensors file.
`identity_of`
    of plain values, such as the options of a stage together with the identities above.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from coordexp.runtime.io import canonical_json, sha256_file
from coordexp.runtime.normalised_source import INFRASTRUCTURE, normalise
from coordexp.runtime.plugins import VARIABLE as PLUGINS

PACKAGE_DATA = (
    ".css",
    ".j2",
    ".js",
    ".json",
    ".txt",
)  # files of packages that count as code: package-data in pyproject.toml
EXCLUDED = (INFRASTRUCTURE, "workflow_scripts.arguments")
SOURCES = Path(__file__).resolve().parents[2]
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10  # of a safetensors file: 4 MB whatever its size


def code_identity(*modules: str, roots: Iterable[Path] = (SOURCES,)) -> str:
    """16 hex digits for what the dotted `modules`, found under `roots`, compute."""
    roots = tuple(roots)
    names = set().union(*(closure(module, roots) for module in modules))
    paths = {name: _locate(name, roots) for name in sorted(names)}
    paths |= {f"plug-in {file.name}": file for file in _plugins_of(names)}
    digest = hashlib.sha256()
    for name, path in paths.items():
        digest.update(name.encode() + b"\0" + _normalised(path).encode() + b"\0")
    for folder in sorted({_locate(name, roots).parent for name in names} - set(roots)):
        for file in _package_data(folder):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def content_identity(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by file name: of all bytes, or of header, size and evenly spaced samples of a safetensors file.

    Weights that differ in no sampled byte count as the same: a training step changes all of them.
    """
    return {file.name: file_identity(file) for file in files}


def file_identity(file: str | Path) -> str:
    """`content_identity` of one file."""
    file = Path(file)
    return _sampled(file) if file.suffix == ".safetensors" else sha256_file(file)


def identity_of(value: Any) -> str:
    """16 hex digits for plain values; the order of keys does not count."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def non_defaults(struct: msgspec.Struct) -> dict[str, Any]:
    """Plain values of the fields that are not at their defaults, at any depth.

    An option that a later version adds, off by default, does not change an identity that is computed from these.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        factory = field.default_factory
        default = field.default if factory is msgspec.NODEFAULT else factory()
        if value != default:
            nested = isinstance(value, msgspec.Struct)
            values[field.encode_name] = non_defaults(value) if nested else msgspec.to_builtins(value)
    return values


@functools.cache
def closure(module: str, roots: tuple[Path, ...]) -> frozenset[str]:
    """`module` and every module of this project that it imports, directly or not, without those in `EXCLUDED`."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or _excluded(name) or (path := _locate(name, roots)) is None:
            continue
        seen.add(name)
        waiting += _imports(path)
        waiting += [name.rsplit(".", 1)[0]] if "." in name else []
    return frozenset(seen)


def _plugins_of(modules: set[str]) -> list[Path]:
    """Plug-ins that import one of `modules`, or nothing of this project, as their use is then unknown."""
    files = [Path(name).resolve() for name in os.environ.get(PLUGINS, "").split(os.pathsep) if name]
    imported = {file: {name for name in _imports(file) if name.startswith("coordexp.")} for file in files}
    used = {file: {name for name in names if not _excluded(name)} for file, names in imported.items()}
    return sorted(file for file in files if not used[file] or used[file] & modules)


def _excluded(name: str) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in EXCLUDED)


def _package_data(folder: Path) -> list[Path]:
    """Templates and schemas of a package: in its folder, and in folders below that are not packages.

    Backups of editors have other suffixes; hidden files of file managers and NFS do not count.
    """
    inner = [p for p in folder.iterdir() if p.is_dir() and not (p / "__init__.py").exists()]
    candidates = [*folder.iterdir(), *(file for directory in inner for file in directory.rglob("*"))]
    return sorted(
        p for p in candidates if p.suffix in PACKAGE_DATA and p.is_file() and not _hidden(p.relative_to(folder))
    )


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
def _imports(path: Path) -> list[str]:
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):  # never executed
            waiting += ast.iter_child_nodes(node)
    return names


@functools.cache
def _normalised(path: Path) -> str:
    return normalise(path.read_text(encoding="utf-8"))


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb", buffering=0) as handle:
        digest.update(handle.read(min(int.from_bytes(handle.read(8), "little"), size)))
        for i in range(_SAMPLES):
            handle.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()
