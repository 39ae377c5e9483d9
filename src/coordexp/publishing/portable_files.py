"""A copy of a checkpoint for publication, without local paths and secrets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from coordexp.modeling.checkpoint_files import files, licence_files
from coordexp.modeling.safetensors_io import link_or_copy
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import file_mode, read_json, write_json
from coordexp.runtime.local_paths import VOCABULARIES, published, replace_paths
from coordexp.runtime.secrets import find_secret

_UNREAD = {*VOCABULARIES, "merges.txt"}  # whose entries look like paths
_TEXTS = (".json", ".md", ".txt", ".jinja")
_LOCAL_PATH = re.compile(r"(?<![\w./~:-])/(?:home|root|Users|mnt|data|scratch|work|tmp|var|srv|opt)/[^\s\"'<>]+")


def copy_checkpoint(merged: Path, out: Path) -> None:
    """Write the files of a merged checkpoint to the folder `out`; weights are linked where possible.

    Weights whose permissions are narrower than the umask are copied. In JSON files, absolute paths and existing
    relative ones keep only their last part, after `.../`.
    """
    for file in sorted({*files(merged), *licence_files(merged)}):
        if file.suffix == ".json" and file.name not in _UNREAD:
            write_json(out / file.name, replace_paths(read_json(file), published))
        elif file.stat().st_mode & file_mode() == file_mode():
            link_or_copy(file, out / file.name)
        else:
            shutil.copyfile(file, out / file.name)


def add_licence(folder: Path, licence: str | None) -> str | None:
    """The name of the file with the licence in `folder`, written if it is missing; None if its text is unknown."""
    for file in licence_files(folder):
        if not file.name.startswith("NOTICE"):
            return file.name
    text = Path(__file__).parent / f"{licence}.txt"
    if licence is None or not text.is_file():
        return None
    shutil.copyfile(text, folder / "LICENSE")
    return "LICENSE"


def refuse_private_content(folder: Path) -> None:
    """ConfigError that names the file if a text in `folder` contains a local path or a secret."""
    texts = {file for file in folder.iterdir() if file.suffix in _TEXTS and file.name not in _UNREAD}
    for file in sorted(texts.union(licence_files(folder))):
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
