"""A copy of a checkpoint for publication, without local paths and secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from coordexp.modeling.checkpoint_files import files
from coordexp.modeling.safetensors_io import link_or_copy
from coordexp.reporting.provenance import without_local_paths
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import read_json, write_json
from coordexp.runtime.local_paths import VOCABULARIES
from coordexp.runtime.secrets import find_secret

_UNREAD = {*VOCABULARIES, "merges.txt"}  # whose entries look like paths
_TEXTS = (".json", ".md", ".txt", ".jinja")
_LOCAL_PATH = re.compile(r"(?<![\w./~:-])/(?:home|root|Users|mnt|data|scratch|work|tmp|var|srv|opt)/[^\s\"'<>]+")


def copy_checkpoint(merged: Path, out: Path) -> None:
    """Write the files of a merged checkpoint to the folder `out`; weights are linked where possible.

    In JSON files, absolute paths and existing relative ones keep only their last part, after `.../`.
    """
    for file in files(merged):
        if file.suffix == ".json" and file.name not in _UNREAD:
            write_json(out / file.name, _without_paths(read_json(file)))
        else:
            link_or_copy(file, out / file.name)


def refuse_private_content(folder: Path) -> None:
    """ConfigError that names the file if a text in `folder` contains a local path or a secret."""
    for file in sorted(folder.iterdir()):
        if file.suffix not in _TEXTS or file.name in _UNREAD:
            continue
        text = file.read_text("utf-8", errors="replace")
        for line, content in enumerate(text.splitlines(), start=1):
            if find_secret(content):
                problem, fix = "a secret, for example an access token", "remove it from the checkpoint, and revoke it"
                raise ConfigError(located(problem, file=file.name, line=line, fix=fix))
            local = [str(Path.home()), str(Path.cwd())]
            match = _LOCAL_PATH.search(content)
            if match or any(path in content for path in local if len(Path(path).parts) > 2):
                fix = "remove it from the file in the checkpoint's folder"
                found = match[0] if match else content.strip()[:200]
                raise ConfigError(located("a path of this machine", file=file.name, line=line, found=found, fix=fix))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and "/" in value and not value.startswith("/") and _exists(value):
        return f".../{Path(value).name}"
    return without_local_paths(value)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than a path can be, or with a null character
        return False
