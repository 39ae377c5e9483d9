"""One complete Hugging Face checkpoint from a base and what was trained on it: an adapter or full weights.

Streams: a tensor is read in blocks of rows, changed in float32 and rounded once to the base's dtype. Peak memory is a
few blocks, not the model. The output appears whole or not at all.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import coordexp
from coordexp.modeling import adapter as peft_adapter
from coordexp.modeling import merge_plan as update
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling import vocab
from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.modeling.families import family_of
from coordexp.runtime import io
from coordexp.runtime.code_identity import code_identity, content_identity
from coordexp.runtime.errors import CoordExpError, ModelError, located
from coordexp.runtime.estimates import announce_shards

MANIFEST_NAME = "merge_manifest.json"
TRAIN_MANIFEST = "train_manifest.json"
TRAINER_STATE = "trainer_state.json"

_STEP = re.compile(r"checkpoint-(\d+)")


class OutputExistsError(ModelError):
    """The output folder is already there and overwriting was not asked for (exit code 2)."""


def merge(
    base_dir: str | Path,
    trained: str | Path,
    out_dir: str | Path,
    allow_overwrite: bool = False,
    best: bool = False,
) -> dict:
    """Write the merged checkpoint to `out_dir`; returns the content of its merge_manifest.json.

    `trained` is a PEFT adapter folder (LoRA, DoRA, coordinate offsets, fully trained modules), a full-parameter
    checkpoint, or a folder or glob of `checkpoint-N` folders, of which the newest is taken (`best`: the one that the
    trainer named best). Configuration, tokenizer, processor, chat template, dtype and, for adapters, the shard layout
    are the base's; optimizer states and other leftovers of training stay behind.
    """
    base, out = Path(base_dir), Path(out_dir)
    checkpoint_dir = resolve_checkpoint(trained, best=best)
    _check_output(base, checkpoint_dir, out, allow_overwrite)
    base_weights = shards.open_checkpoint(base)
    family, config = family_of(base), io.read_json(base / "config.json")
    _check_same_tokenizer(base, checkpoint_dir)
    _check_trained_base(base, checkpoint_dir)
    if (checkpoint_dir / peft_adapter.CONFIG_NAME).exists():
        plan = update.plan_adapter(base_weights, peft_adapter.read_adapter(checkpoint_dir), family.embeddings(config))
    else:
        plan = update.plan_full(base_weights, shards.open_checkpoint(checkpoint_dir), family.embeddings(config))
    manifest = _manifest(base, base_weights, checkpoint_dir, plan)
    _check_not_merged(base, manifest)
    _check_ids(base, plan)
    _announce(base, plan, out)
    with io.atomic_dir(out) as folder:
        _link_base_files(base, folder)
        manifest["shards"] = update.write(plan, folder)
        if plan.untied:
            (folder / "config.json").unlink()
            io.write_json(folder / "config.json", family.untied(config))
        io.write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def resolve_checkpoint(*trained: str | Path, best: bool = False) -> Path:
    """The folder to merge: itself, or of several `checkpoint-N` the newest complete one, or the trainer's best.

    Newest is the highest step, whatever the names' order or the files' times say.
    """
    patterns = [str(entry) for entry in trained]
    folders = [Path(p) for text in patterns for p in (glob(text) if any(c in text for c in "*?[") else [text])]
    candidates = [
        c
        for folder in folders
        for c in ([folder] if _complete(folder) else folder.glob("checkpoint-*"))
        if _complete(c)
    ]
    if not candidates:
        fix = "expected a folder with adapter_config.json or model weights, or checkpoint-N folders of that kind"
        raise ModelError(located("nothing to merge here", file=" ".join(patterns), fix=fix))
    newest = max(candidates, key=lambda c: (_step(c), c.stat().st_mtime))
    if not best:
        return newest
    state = newest / TRAINER_STATE
    named = io.read_json(state).get("best_model_checkpoint") if state.exists() else None
    chosen = [c for c in candidates if named and c.name == Path(named).name]
    if not chosen:
        fix = "train with custom.detection_eval, or evaluation and metric_for_best_model; or merge the newest"
        raise ModelError(
            located("the trainer named no best checkpoint that is still here", file=state, found=named, fix=fix)
        )
    return chosen[0]


def merge_from_env(environ: dict[str, str] | None = None) -> int:
    """`ADAPTERS=... OUTPUT_DIR=... [BASE=...] [ALLOW_OVERWRITE=1] [BEST=1]`: merge and return the exit code.

    ADAPTERS may be a folder, a glob, or several folders separated by white space; the newest is merged. The base is the
    one that the adapter names unless BASE is set. GPU_DEVICES is accepted and unused: merging runs on the CPU.
    Exit codes: 0 done, 1 cannot merge, 2 bad usage or existing OUTPUT_DIR.
    """
    env = os.environ if environ is None else environ
    adapters, out = env.get("ADAPTERS", "").split(), env.get("OUTPUT_DIR")
    if not adapters or not out:
        print("set ADAPTERS (folder or glob of checkpoints) and OUTPUT_DIR", file=sys.stderr)
        return 2
    best = _flag(env, "BEST")
    try:
        chosen = resolve_checkpoint(*adapters, best=best)
        base = env.get("BASE") or _named_base(chosen)
        manifest = merge(base, chosen, out, allow_overwrite=_flag(env, "ALLOW_OVERWRITE"))
    except OutputExistsError as error:
        print(error, file=sys.stderr)
        return 2
    except CoordExpError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"merged {chosen} into {out}: {io.canonical_json(manifest['applied'])}")
    return 0


def _complete(folder: Path) -> bool:
    if (folder / peft_adapter.CONFIG_NAME).exists():
        return (folder / peft_adapter.WEIGHTS_NAME).exists()
    return (folder / shards.SINGLE_NAME).exists() or (folder / shards.INDEX_NAME).exists()


def _step(folder: Path) -> int:
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _flag(env: Any, name: str) -> bool:
    return env.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _named_base(folder: Path) -> str:
    config = folder / peft_adapter.CONFIG_NAME
    named = io.read_json(config).get("base_model_name_or_path") if config.exists() else None
    if not named or not Path(named).is_dir():
        fix = "set BASE to the expanded checkpoint that was trained"
        raise ModelError(located("the base of this checkpoint is not a folder here", file=folder, found=named, fix=fix))
    return named


def _check_output(base: Path, checkpoint_dir: Path, out: Path, allow_overwrite: bool) -> None:
    if out.resolve() in (base.resolve(), checkpoint_dir.resolve()):
        raise ModelError(located("the output would replace its own input", file=out, fix="choose another folder"))
    if out.exists() and not allow_overwrite:
        fix = "choose another OUTPUT_DIR or set ALLOW_OVERWRITE=1"
        raise OutputExistsError(located("output folder exists", file=out, fix=fix))


def _check_same_tokenizer(base: Path, checkpoint_dir: Path) -> None:
    if not (base / vocab.COORD_FILE).exists():
        return
    expected = io.read_json(base / vocab.COORD_FILE)
    for folder in (base, checkpoint_dir):
        if (folder / "tokenizer.json").exists():
            vocab.check_tokenizer(folder, expected)


def _check_trained_base(base: Path, checkpoint_dir: Path) -> None:
    """The weights that training recorded are the base's: shapes alone do not tell two models of one size apart."""
    manifest = checkpoint_dir / TRAIN_MANIFEST
    expected = io.read_json(manifest).get("base") if manifest.exists() else None
    found = weights_identity(base) if expected else None
    if found != expected:
        different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        fix = "merge into the expanded checkpoint that was trained"
        raise ModelError(located("not the base that was trained", file=base, found=different, fix=fix))


def _check_ids(base: Path, plan: update.MergePlan) -> None:
    if plan.offsets is None:
        return
    ids = vocab.coord_ids(base)
    found = (plan.offsets.start, plan.offsets.end)
    if found != (ids.start, ids.end):
        problem = "the adapter's coordinate ids are not the base's"
        raise ModelError(located(problem, file=base, expected=(ids.start, ids.end), found=found, fix="wrong base?"))


def _check_not_merged(base: Path, manifest: dict) -> None:
    earlier = base / MANIFEST_NAME
    if not earlier.exists():
        return
    before = io.read_json(earlier)
    history = [before["trained"]["weights"], *before.get("merged_before", [])]
    if manifest["trained"]["weights"] in history:
        fix = "merge into the checkpoint that was trained, not into the merged one"
        raise ModelError(located("this adapter is already merged into the base", file=base, fix=fix))
    manifest["merged_before"] = history


def _manifest(base: Path, weights: shards.Checkpoint, checkpoint_dir: Path, plan: update.MergePlan) -> dict:
    return {
        "coordexp": coordexp.__version__,
        "code": code_identity(__name__),
        "base": {
            "path": str(base),
            "config": io.sha256_file(base / "config.json"),
            "weights": content_identity(shard.path for shard in weights.shards.values()),
        },
        "trained": {
            "path": str(checkpoint_dir),
            "kind": plan.kind,
            "weights": content_identity(file.path for file in plan.trained_files),
            "recipe": _recipe(checkpoint_dir),
        },
        "applied": plan.applied,
        "untied": plan.untied,
    }


def _recipe(checkpoint_dir: Path) -> dict | None:
    """What it was trained by, so that a merged folder says how to ask it."""
    manifest = checkpoint_dir / TRAIN_MANIFEST
    return io.read_json(manifest).get("recipe") if manifest.exists() else None


def _announce(base: Path, plan: update.MergePlan, out: Path) -> None:
    sources = {name: update.unchanged_file(name, changes) for name, changes in plan.files.items()}
    written = {name: update.size(plan.files[name]) for name, source in sources.items() if source is None}
    linked = [source for source in sources.values() if source is not None]
    announce_shards("merge", out, written, [*linked, *_base_files(base)])


def _link_base_files(base: Path, folder: Path) -> None:
    for file in _base_files(base):
        shards.link_or_copy(file, folder / file.name)


def _base_files(base: Path) -> Iterator[Path]:
    """What a merged checkpoint has of its base, beside weights."""
    leave = {MANIFEST_NAME, shards.INDEX_NAME}
    for file in sorted(base.iterdir()):
        weights = file.suffix in {".safetensors", ".bin", ".pt", ".pth"}
        if file.is_file() and not weights and file.name not in leave:
            yield file
