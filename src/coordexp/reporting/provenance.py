"""What a run was made from: recipe, checkpoint, versions, revision of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coordexp.runtime.io import read_json, sha256_file

PACKAGES = (
    "coordexp",
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


def provenance(train_manifest: str | Path, calibration: str | Path | None = None) -> dict[str, Any]:
    """Training's manifest, the calibration of the scores if there is one, versions of packages, state of the code."""
    manifest = read_json(train_manifest)
    learnt = {} if calibration is None else {"calibration": read_json(calibration)}
    return {
        "training": manifest,
        "training_manifest_sha256": sha256_file(train_manifest),
        **learnt,
        "versions": {"python": platform.python_version(), **_versions()},
        "code": revision(Path(__file__).parent),
    }


def revision(folder: Path) -> dict[str, Any]:
    """Git commit of the folder and whether files differ from it; both None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "changed_files": None if changed is None else len(changed.splitlines())}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
