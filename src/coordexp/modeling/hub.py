"""Merged checkpoints by name: a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from coordexp.modeling.checkpoint_files import LICENCES, PATTERNS
from coordexp.modeling.checksums import FILE_NAME as CHECKSUMS
from coordexp.runtime.errors import ModelError, located

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def checkpoint_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; a repository of the hub is downloaded to the hub's cache.

    model: a folder, or `owner/name`. A text is a repository only if it has this form and neither it nor `owner` is a
        local folder, so that a mistyped path is not looked up.
    revision: branch, tag or commit of the repository; only a commit always gives the same weights.

    The environment variables of `huggingface_hub` apply: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE. ModelError if
    there is neither such a folder nor such a repository.
    """
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            problem = "a revision is given, but the checkpoint is a local folder"
            raise ModelError(located(problem, file=folder, found=revision, fix="omit the revision"))
        return folder
    if isinstance(model, Path) or not is_repo_id(model):
        fix = "pass the folder of a merged checkpoint, or owner/name of a model on the Hugging Face Hub"
        raise ModelError(located("no such checkpoint folder", file=folder, fix=fix))
    return _downloaded(model, revision)


def is_repo_id(text: str) -> bool:
    """Whether `text` is `owner/name`, and `owner` is not a local folder."""
    return REPO_ID.fullmatch(text) is not None and not Path(text).parent.is_dir()


def _downloaded(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*PATTERNS, *LICENCES, CHECKSUMS]))
    except Exception as error:  # from the client, the HTTP layer or the file system
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        problem = f"no such checkpoint folder, and the model cannot be downloaded from the hub: {reason}"
        fix = "check name, revision, network and access rights (HF_TOKEN), or pass the folder of a checkpoint"
        raise ModelError(located(problem, file=f"{repo}@{revision}" if revision else repo, fix=fix)) from error
