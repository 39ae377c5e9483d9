"""Base checkpoints as local folders: from a hub at a pinned revision, from another folder, or a tiny model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from coordexp.modeling import checkpoint_files as contents
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling import tiny
from coordexp.modeling.checkpoint_files import LICENCES, PATTERNS, SOURCE_FILE
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.checksums import verify_checksums
from coordexp.modeling.families import family_of
from coordexp.runtime import io
from coordexp.runtime.errors import ConfigError, DownloadError, SpaceError, located, nearest
from coordexp.runtime.estimates import format_bytes, free_bytes, nearest_existing_dir
from coordexp.runtime.local_paths import portable_path
from coordexp.runtime.locks import disk_is_full, full_disk
from coordexp.runtime.output_guard import MARKER, output_dir, refuse_foreign_folder

_SOURCES = ("hf", "modelscope", "path", "tiny")
_CACHE_VARIABLES = {"hf": "HF_HOME", "modelscope": "MODELSCOPE_CACHE"}


def fetch(name: str, model: dict[str, Any], out_dir: str | Path) -> dict:
    """Write the checkpoint folder `out_dir` for the entry `models.{name}` of the configuration.

    The sources `hf` and `modelscope` need `repo` and a pinned `revision` and download into the cache of the hub, where
    interrupted downloads resume; `path` names a folder. Weights (safetensors) are hard-linked from there, or copied
    where links are impossible; the checkpoint's other files (json, jinja, txt) are copied. `tiny` builds a tiny model
    with `seed`; the other keys are its options. Returns the content of `model_source.json`. ConfigError for an invalid
    entry, DownloadError if the hub cannot be reached, SpaceError if the disk of its cache is full, ModelError for
    damaged weights or an unknown model family.
    """
    out, entry = Path(out_dir), dict(model)
    source = entry.pop("source", None)
    if source not in _SOURCES:
        fix = f"use one of {', '.join(_SOURCES)}{nearest(str(source), _SOURCES)}"
        raise ConfigError(located("unknown source", field=f"models.{name}.source", found=source, fix=fix))
    refuse_foreign_folder(out, "fetch")
    facts = {"name": name, "source": source, **entry}
    if source == "tiny":
        tiny.build(out, entry.pop("seed", 0), **entry)
        io.write_json(out / SOURCE_FILE, facts)
        io.write_text(out / MARKER, "fetch\n")
        return facts
    if source == "path":
        folder = Path(_need(name, entry, "path"))
        if not folder.is_dir():
            raise ConfigError(located("no such folder", field=f"models.{name}.path", found=str(folder)))
        facts["path"] = portable_path(folder)
    else:
        repo, revision = _need(name, entry, "repo"), _need(name, entry, "revision")
        folder = _download(name, source, repo, revision)
    _link_checkpoint(folder, out, facts)
    return facts


def _link_checkpoint(folder: Path, out: Path, facts: dict) -> None:
    from_hub = facts["source"] != "path"  # other files in the cache of a hub are not used
    check_checkpoint(folder, only=contents.files(folder) if from_hub else None)
    verify_checksums(folder)
    shards.open_checkpoint(folder)
    methods = set()
    with output_dir(out, "fetch") as scratch:
        own = contents.own_files(folder, "fetch")
        for file in sorted({*contents.files(folder), *contents.licence_files(folder)} & set(own)):
            method = shards.link_or_copy(file, scratch / file.name)
            if file.suffix == ".safetensors":
                methods.add(method)
        for needed in ("config.json", "tokenizer.json"):
            if not (scratch / needed).exists():
                raise ConfigError(located("incomplete checkpoint", file=folder, expected=needed, found="no such file"))
        family_of(scratch)
        facts["contents"] = contents.checkpoint_identity(scratch)
        facts["files"] = "linked" if methods == {"link"} else "copied" if methods == {"copy"} else "linked or copied"
        io.write_json(scratch / SOURCE_FILE, facts)


def _download(name: str, source: str, repo: str, revision: str) -> Path:
    cache = _cache(source)
    variable, free = _CACHE_VARIABLES[source], format_bytes(free_bytes(cache))
    print(f"fetch {repo}: downloading to {cache} ({free} free; set {variable} to use another folder)", file=sys.stderr)
    try:
        if source == "hf":
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(repo, revision=revision, allow_patterns=[*PATTERNS, *LICENCES]))
        from modelscope import snapshot_download

        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*PATTERNS, *LICENCES]))
    except Exception as error:  # each hub client has its own exception classes
        if disk_is_full(error, nearest_existing_dir(cache)):
            otherwise = f", or set {variable} to a folder on another disk,"
            raise SpaceError(full_disk(cache, error, otherwise)) from error
        fix = (
            f"check the network, proxy and access rights; or download {repo} at {revision} on another machine and set "
            f"models.{name} to {{source: path, path: /folder/of/the/checkpoint}}"
        )
        problem = f"cannot fetch {repo} from {source}: {type(error).__name__}: {error}"
        raise DownloadError(located(problem, field=f"models.{name}", fix=fix)) from error


def _cache(source: str) -> Path:
    """The folder in which the client of a hub caches its downloads."""
    if source == "hf":
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    return Path(os.environ.get(_CACHE_VARIABLES[source]) or "~/.cache/modelscope").expanduser()


def _need(name: str, entry: dict, key: str) -> str:
    value = entry.get(key)
    if not value:
        fix = "hf and modelscope need repo and revision (a commit), path needs path"
        raise ConfigError(located("missing key", field=f"models.{name}.{key}", fix=fix))
    return str(value)
