"""Which files of a folder make up a checkpoint, and what tells their content from another's at little cost."""

from __future__ import annotations

from pathlib import Path

from coordexp.modeling import safetensors_io as shards
from coordexp.runtime.io import read_json, sha256_file

SOURCE_FILE = "model_source.json"
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt")


def files(folder: Path) -> list[Path]:
    """Files of a checkpoint in `folder`: weights, configuration, tokenizer and templates."""
    return sorted(file for pattern in PATTERNS for file in folder.glob(pattern) if file.name != SOURCE_FILE)


def digests(folder: Path) -> dict[str, str]:
    """Hash by name of a checkpoint's files: of weights by header, size and samples, of all others whole.

    ModelError when weights are missing or damaged.
    """
    others = [file for file in files(folder) if file.suffix != ".safetensors"]
    return shards.fingerprints(folder) | {file.name: sha256_file(file) for file in others}


def recorded(fetched: Path) -> dict[str, str] | None:
    """`digests` as the manifest in the folder `fetched` has them; None without one, DataError for a damaged one."""
    manifest = fetched / SOURCE_FILE
    return read_json(manifest).get("contents") if manifest.exists() else None
