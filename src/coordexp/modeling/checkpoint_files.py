"""The files that make up a checkpoint, copying them, and their content identity."""

from __future__ import annotations

import sys
from pathlib import Path

from coordexp.modeling.safetensors_io import open_checkpoint
from coordexp.runtime.code_identity import content_identity
from coordexp.runtime.errors import ModelError, located
from coordexp.runtime.io import read_json

SOURCE_FILE = "model_source.json"
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")  # kept with the weights, but no result depends on them
_READ = (".safetensors", ".json", ".jinja")  # files of these types are never left out of a copy


def files(folder: Path) -> list[Path]:
    """The checkpoint's files in `folder`: weights, configuration, tokenizer and templates."""
    own, outside = _regular_files(folder)
    found = [*own, *(file for file in outside if file.suffix in _READ)]
    return sorted(file for file in found if file.name != SOURCE_FILE and any(map(file.match, PATTERNS)))


def licence_files(folder: Path) -> list[Path]:
    """The texts of licences and notices in `folder`."""
    own, _ = _regular_files(folder)
    return [file for file in own if any(map(file.match, LICENCES))]


def own_files(folder: Path, stage: str | None = None) -> list[Path]:
    """The regular files in `folder`, which may be copied to another checkpoint.

    A symbolic link that leads out of the folder is never followed: ModelError for weights, JSON files and templates,
    and others are skipped, which is reported on stderr as `stage`. The links in the cache of a hub are its files.
    """
    own, outside = _regular_files(folder)
    for file in outside:
        if file.suffix in _READ:
            fix = "copy or hard-link the file into the folder, or pass the folder that contains it"
            raise ModelError(located("a symbolic link that leads out of the checkpoint", file=file, fix=fix))
        if stage:
            print(f"{stage}: skipped {file}: a symbolic link that leads out of the checkpoint", file=sys.stderr)
    return own


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


def _regular_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The regular files in a folder, and those that are symbolic links to somewhere else."""
    own, outside = [], []
    for file in sorted(folder.iterdir()):
        if file.is_file():
            (own if not file.is_symlink() or _belongs(file, folder) else outside).append(file)
    return own, outside


def _belongs(link: Path, folder: Path) -> bool:
    target = link.resolve()
    in_hub_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return in_hub_cache or target.is_relative_to(folder.resolve())
