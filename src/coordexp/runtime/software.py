"""Versions of the packages and the commit of the code of this process, for manifests; optional libraries."""

from __future__ import annotations

import importlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import coordexp
from coordexp.runtime.errors import ConfigError, located

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "ms-swift",
    "hotcoco",
    "numpy",
    "scipy",
    "safetensors",
    "snakemake",
)


def library(name: str, install: str | None = None) -> ModuleType:
    """An optional library; ConfigError with the command that installs it, which defaults to the extra of its name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = install or f"pip install 'coordexp[{name}]'"
        raise ConfigError(located(f"the library {name} is not installed", fix=fix)) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "coordexp": coordexp.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def revision(folder: Path) -> dict[str, Any]:
    """Git commit of the folder and the number of changed files; both None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "changed_files": None if changed is None else len(changed.splitlines())}


def describe(code: str) -> dict[str, Any]:
    """What this process is: package versions, commit, and the identity of the code that it runs."""
    return {"software": versions(), "revision": revision(Path(__file__).parent), "code": code}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
