"""Publish the checkpoint of a run: to a folder, or to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.inference_settings import InferenceSettings, read_inference_settings
from coordexp.evaluation.results import load_eval
from coordexp.modeling.checkpoint_files import LICENCES, PATTERNS, SOURCE_FILE
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.checksums import verify_checksums, write_checksums
from coordexp.modeling.hub import is_repo_id
from coordexp.publishing.card import Facts, data_licence_of, model_card
from coordexp.publishing.portable_files import add_licence, copy_checkpoint, refuse_private_content
from coordexp.runtime.errors import ConfigError, DownloadError, located
from coordexp.runtime.io import atomic_dir, read_json, write_text
from coordexp.runtime.locks import disk_is_full

CARD = "README.md"


class Published(msgspec.Struct, frozen=True):
    """What was published.

    files: size in bytes by name. revision: commit on the hub, None for a folder or dry run. licence, data_licence: as
    stated in the model card; None if it does not state one.
    """

    target: str
    files: dict[str, int]
    revision: str | None = None
    licence: str | None = None
    data_licence: str | None = None


def publish(
    run: str | Path,
    to: str,
    *,
    licence: str | None = None,
    data_licence: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    message: str = "Publish a checkpoint trained with CoordExp",
) -> Published:
    """Publish `results/{run}/merged` with a model card and SHA256SUMS.

    to: `owner/name` on the Hugging Face Hub (HF_TOKEN, HF_ENDPOINT), or a new folder. A text of this form is a
        folder if `owner` is one here, or if it starts with `./`.
    licence: identifier of the hub, such as `apache-2.0`; data_licence: text for the card. Default: as far as known.
    public: create a public repository; one that exists keeps its visibility.
    dry_run: prepare and check all files, in a temporary folder, but write and upload nothing.

    Files of an earlier version that the new one lacks are removed from the repository. ConfigError for a file that
    contains a secret or a path of this machine; ModelError for a damaged checkpoint.
    """
    run = Path(run)
    merged = run / "merged"
    if not merged.is_dir():
        fix = "pass the folder of a finished run, for example results/shapes_9"
        raise ConfigError(located("the run has no merged checkpoint", file=merged, fix=fix))
    check_checkpoint(merged)
    verify_checksums(merged)
    hub = is_repo_id(to)
    facts = _facts(run, to if hub else Path(to).name, licence, data_licence)
    with _folder(None if hub or dry_run else Path(to)) as folder:
        copy_checkpoint(merged, folder)
        facts = facts._replace(licence_file=add_licence(folder, facts.licence))
        write_checksums(folder)  # before the card, which may be edited on the hub
        write_text(folder / CARD, model_card(facts))
        refuse_private_content(folder)
        verify_checksums(folder)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
        revision = _upload(folder, to, public, message) if hub and not dry_run else None
    return Published(to, files, revision, facts.licence, data_licence_of(facts))


def _facts(run: Path, model: str, licence: str | None, data_licence: str | None) -> Facts:
    merged = run / "merged"
    manifest = _json(merged / "merge_manifest.json")
    base = _base(manifest, run)
    categories = _json(run / "train" / "categories.json").get("names", {})
    return Facts(
        name=run.resolve().name,
        model=model,
        family=_json(merged / "config.json").get("model_type"),
        base=base,
        recipe=manifest.get("trained", {}).get("recipe") or {},
        settings=read_inference_settings(merged) or InferenceSettings(),
        stats=_json(run / "data" / "train.stats.json") or None,
        result=load_eval(run / "eval.json") if (run / "eval.json").is_file() else None,
        categories=list(categories.values()) if isinstance(categories, dict) else [],
        step=_json(run / "train" / "adapter" / "train_manifest.json").get("step"),
        licence=licence or licence_of(base),
        data_licence=data_licence,
        licence_file=None,
    )


def _base(manifest: dict[str, Any], run: Path) -> dict[str, Any]:
    """What is recorded about the base model that the adapter was merged into.

    A relative path is that of the workflow, whose folder contains `results/{run}`.
    """
    path = manifest.get("base", {}).get("path")
    if not path:
        return {}
    workflow = run.resolve().parent.parent
    return _json(workflow / path / SOURCE_FILE) or _json(Path(path) / SOURCE_FILE) or {"name": Path(path).name}


def licence_of(base: dict[str, Any]) -> str | None:
    """The licence of a known base model: Qwen3-VL, Qwen3.5, or the generated tiny model."""
    known = base.get("source") == "tiny" or str(base.get("repo", "")).startswith(("Qwen/Qwen3-VL", "Qwen/Qwen3.5"))
    return "apache-2.0" if known else None


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _folder(target: Path | None) -> Iterator[Path]:
    """A new folder at `target`, complete or absent; without a target a temporary one."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="coordexp-publish-") as scratch:
            yield Path(scratch)
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(located("the folder exists and is not empty", file=target, fix="choose a new folder"))
    with atomic_dir(target) as scratch_dir:
        yield scratch_dir


def _upload(folder: Path, repo: str, public: bool, message: str) -> str:
    """Upload the folder in one commit; returns the commit."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="coordexp")
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=[*PATTERNS, *LICENCES]
        )
    except Exception as error:  # from the client, the HTTP layer or the file system
        if disk_is_full(error, folder):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        fix = "log in with `hf auth login`, or set HF_TOKEN to a token with write access; check name and network"
        raise DownloadError(located(f"cannot upload to the hub: {reason}", file=repo, fix=fix)) from error
    return str(commit.oid)
