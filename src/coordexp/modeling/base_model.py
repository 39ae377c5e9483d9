"""Base checkpoints under one roof: from a hub at a pinned revision, from a folder, or built small."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from coordexp.modeling import checkpoint_files as contents
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling import tiny
from coordexp.modeling.checkpoint_files import PATTERNS, SOURCE_FILE
from coordexp.runtime import io
from coordexp.runtime.errors import ConfigError, DownloadError, SpaceError, located, nearest
from coordexp.runtime.estimates import format_bytes, free_bytes, nearest_existing_dir
from coordexp.runtime.locks import disk_is_full, full_disk

_SOURCES = ("hf", "modelscope", "path", "tiny")
_PLACES = {"hf": "HF_HOME", "modelscope": "MODELSCOPE_CACHE"}  # variable that names the folder of a hub's cache


def fetch(name: str, model: dict[str, Any], out_dir: str | Path) -> dict:
    """Make `out_dir` a complete checkpoint folder for the entry `models.{name}` of the configuration.

    `hf` and `modelscope` need `repo` and a pinned `revision` and land in the hub's own cache (downloads resume there);
    `path` names a folder. From both the files of a checkpoint (safetensors, json, jinja, txt) are hard-linked, or
    copied where links are impossible. `tiny` builds a small model from `seed` and the other keys as knobs. Returns what
    `model_source.json` records. Raises ConfigError for an unusable entry, DownloadError when a hub cannot be reached,
    SpaceError when the disk of its cache is full, ModelError for damaged weights.
    """
    out, entry = Path(out_dir), dict(model)
    source = entry.pop("source", None)
    if source not in _SOURCES:
        fix = f"use one of {', '.join(_SOURCES)}{nearest(str(source), _SOURCES)}"
        raise ConfigError(located("unknown source", field=f"models.{name}.source", found=source, fix=fix))
    facts = {"name": name, "source": source, **entry}
    if source == "tiny":
        tiny.build(out, entry.pop("seed", 0), **entry)
        io.write_json(out / SOURCE_FILE, facts)
        return facts
    if source == "path":
        folder = Path(_need(name, entry, "path"))
        if not folder.is_dir():
            raise ConfigError(located("no such folder", field=f"models.{name}.path", found=str(folder)))
    else:
        repo, revision = _need(name, entry, "repo"), _need(name, entry, "revision")
        folder = _download(name, source, repo, revision)
    _adopt(folder, out, facts)
    return facts


def _adopt(folder: Path, out: Path, facts: dict) -> None:
    shards.open_checkpoint(folder)
    how = set()
    with io.atomic_dir(out) as scratch:
        for file in contents.files(folder):
            how.add(shards.link_or_copy(file, scratch / file.name))
        for needed in ("config.json", "tokenizer.json"):
            if not (scratch / needed).exists():
                raise ConfigError(
                    located("not a complete checkpoint", file=folder, expected=needed, found="no such file")
                )
        facts["contents"] = contents.checkpoint_identity(scratch)
        facts["files"] = "linked" if how == {"link"} else "copied" if how == {"copy"} else "linked or copied"
        io.write_json(scratch / SOURCE_FILE, facts)


def _download(name: str, source: str, repo: str, revision: str) -> Path:
    cache = _cache(source)
    room = format_bytes(free_bytes(cache))
    place = f"{cache} ({room} free; {_PLACES[source]} names another)"
    print(f"fetch {repo}: into the hub's cache {place}", file=sys.stderr, flush=True)
    try:
        if source == "hf":
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS)))
        from modelscope import snapshot_download

        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:  # each hub client has its own tree of errors
        if disk_is_full(error, nearest_existing_dir(cache)):
            otherwise = f", or set {_PLACES[source]} to a folder that has it,"
            raise SpaceError(full_disk(cache, error, otherwise)) from error
        fix = (
            f"check the network, proxy and access rights; or fetch {repo} at {revision} elsewhere and set "
            f"models.{name} to {{source: path, path: /folder/of/the/checkpoint}}"
        )
        problem = f"cannot fetch {repo} from {source}: {type(error).__name__}: {error}"
        raise DownloadError(located(problem, field=f"models.{name}", fix=fix)) from error


def _cache(source: str) -> Path:
    """Folder in which the client of a hub keeps what it has fetched."""
    if source == "hf":
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    return Path(os.environ.get(_PLACES[source]) or "~/.cache/modelscope").expanduser()


def _need(name: str, entry: dict, key: str) -> str:
    value = entry.get(key)
    if not value:
        fix = "a hub model needs repo and a pinned revision (a commit), a folder needs path"
        raise ConfigError(located("missing key", field=f"models.{name}.{key}", fix=fix))
    return str(value)
