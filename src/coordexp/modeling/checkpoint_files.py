"""The files that make up a checkpoint, and their content identity."""

from __future__ import annotations

from pathlib import Path

from coordexp.modeling.safetensors_io import open_checkpoint
from coordexp.runtime.code_identity import content_identity
from coordexp.runtime.io import read_json

SOURCE_FILE = "model_source.json"
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt")


def files(folder: Path) -> list[Path]:
    """The checkpoint's files in `folder`: weights, configuration, tokenizer and templates."""
    return sorted(file for pattern in PATTERNS for file in folder.glob(pattern) if file.name != SOURCE_FILE)


def weights_identity(folder: str | Path) -> dict[str, str]:
    """Content identity of a checkpoint's weights by file name; ModelError if they are missing or damaged."""
    return content_identity(shard.path for shard in open_checkpoint(folder).shards.values())


def checkpoint_identity(folder: Path) -> dict[str, str]:
    """Content identity of all files of a checkpoint by name; ModelError if weights are missing or damaged."""
    return weights_identity(folder) | content_identity(file for file in files(folder) if file.suffix != ".safetensors")


def recorded_identity(fetched: Path) -> dict[str, str] | None:
    """`checkpoint_identity` in the manifest of the folder `fetched`; None without one, DataError for a damaged one."""
    manifest = fetched / SOURCE_FILE
    return read_json(manifest).get("contents") if manifest.exists() else None
