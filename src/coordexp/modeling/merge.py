"""Merge a base and the result of its training, an adapter or full weights, into one Hugging Face checkpoint.

Tensors are streamed: each is read in blocks of rows, updated in float32 and rounded once to the dtype of the base, so
peak memory is a few blocks rather than the model. The output folder appears only when it is complete.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path

import coordexp
from coordexp.answers.inference_settings import FILE_NAME as INFERENCE_SETTINGS
from coordexp.answers.inference_settings import InferenceSettings, read_inference_settings
from coordexp.modeling import adapter as peft_adapter
from coordexp.modeling import checksums, vocab
from coordexp.modeling import merge_plan as update
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.adapter_options import nested_modules
from coordexp.modeling.base_checks import embedding_tensors
from coordexp.modeling.checkpoint_config import read_object
from coordexp.modeling.checkpoint_files import SOURCE_FILE, own_files, weights_identity
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.families import family_of
from coordexp.runtime import io
from coordexp.runtime.code_identity import code_identity, content_identity
from coordexp.runtime.errors import CoordExpError, ModelError, located
from coordexp.runtime.estimates import announce_shards
from coordexp.runtime.local_paths import portable_path
from coordexp.runtime.output_guard import MARKER, output_dir, refuse_foreign_folder

MANIFEST_NAME = "merge_manifest.json"
TRAIN_MANIFEST = "train_manifest.json"
TRAINER_STATE = "trainer_state.json"

_STEP = re.compile(r"checkpoint-(\d+)")


class OutputExistsError(ModelError):
    """The output folder exists and overwriting was not requested (exit code 2)."""


def merge(
    base_dir: str | Path,
    trained: str | Path,
    out_dir: str | Path,
    allow_overwrite: bool = False,
    best: bool = False,
) -> dict:
    """Write the merged checkpoint to `out_dir`; returns the content of its merge_manifest.json.

    `trained` is a PEFT adapter folder (LoRA, DoRA, coordinate offsets, fully trained modules), a full-parameter
    checkpoint, or a folder or glob of `checkpoint-N` folders, of which the newest is used (`best`: the one that the
    trainer recorded as best). Configuration, tokenizer, processor, chat template, dtypes and, for adapters, the shards
    are those of the base; optimizer states and other training files are not copied. ModelError if the two do not fit
    together.
    """
    base, out = check_checkpoint(base_dir), Path(out_dir)
    checkpoint_dir = check_checkpoint(resolve_checkpoint(trained, best=best), trained=True)
    _check_output(base, checkpoint_dir, out, allow_overwrite)
    sha256 = {folder: checksums.verify_checksums(folder) for folder in (base, checkpoint_dir)}
    base_weights = shards.open_checkpoint(base)
    family, config = family_of(base), read_object(base / "config.json")
    _check_same_tokenizer(base, checkpoint_dir)
    _check_trained_base(base, checkpoint_dir)
    if (checkpoint_dir / peft_adapter.CONFIG_NAME).exists():
        adapter = peft_adapter.read_adapter(checkpoint_dir)
        _check_not_nested(base_weights, adapter)
        embeddings = embedding_tensors(base_weights, family, config)
        plan = update.plan_adapter(base_weights, adapter, embeddings, family.experts)
    else:
        trained_weights = shards.open_checkpoint(checkpoint_dir)
        embeddings = embedding_tensors(trained_weights, family, config)
        plan = update.plan_full(base_weights, trained_weights, family.embeddings(config), family.experts)
    untied = plan.untied or (family.is_tied(config) and not embeddings.tied)
    settings = _inference_settings(checkpoint_dir)
    manifest = _manifest(base, base_weights, checkpoint_dir, plan) | {"untied": untied}
    _check_not_merged(base, manifest)
    _check_ids(base, plan)
    _announce(base, plan, out)
    with output_dir(out, "merge") as folder:
        _copy_base_files(base, folder)
        written = update.write(plan, folder)
        manifest["shards"] = written.methods
        if untied:
            (folder / "config.json").unlink()
            io.write_json(folder / "config.json", family.untied(config))
        if settings is not None:
            io.write_json(folder / INFERENCE_SETTINGS, settings)
        io.write_json(folder / MANIFEST_NAME, manifest)
        checksums.write_checksums(folder, _linked(plan, sha256) | written.sha256)
    return manifest


def resolve_checkpoint(*trained: str | Path, best: bool = False) -> Path:
    """The checkpoint folder to merge: the newest complete one among `trained`, or the one that was recorded as best.

    Each of `trained` is a checkpoint folder, a folder of `checkpoint-N` folders, or a glob. The newest is the one with
    the highest step, regardless of modification times.
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
        fix = "pass a folder with adapter_config.json or model weights, or a folder of checkpoint-N folders"
        raise ModelError(located("no checkpoint to merge", file=" ".join(patterns), fix=fix))
    newest = max(candidates, key=lambda c: (_step(c), c.stat().st_mtime))
    if not best:
        return newest
    state = newest / TRAINER_STATE
    named = read_object(state).get("best_model_checkpoint") if state.exists() else None
    chosen = [c for c in candidates if named and c.name == Path(named).name]
    if not chosen:
        fix = "train with custom.detection_eval, or with evaluation and metric_for_best_model; or merge the newest"
        raise ModelError(
            located("the trainer recorded no best checkpoint that still exists", file=state, found=named, fix=fix)
        )
    return chosen[0]


def merge_from_env(environ: dict[str, str] | None = None) -> int:
    """Merge with arguments from the environment: ADAPTERS, OUTPUT_DIR, optionally BASE, ALLOW_OVERWRITE and BEST.

    ADAPTERS is a folder, a glob, or several of these separated by white space; the newest checkpoint is merged. BASE
    defaults to the base recorded in the adapter. GPU_DEVICES is accepted and ignored, because merging uses the CPU.
    Returns the exit code: 0 success, 1 the merge is impossible, 2 wrong usage or existing OUTPUT_DIR.
    """
    env = os.environ if environ is None else environ
    adapters, out = env.get("ADAPTERS", "").split(), env.get("OUTPUT_DIR")
    options = {"allow_overwrite": flag(env, "ALLOW_OVERWRITE"), "best": flag(env, "BEST")}
    return merge_and_report(adapters, out, env.get("BASE"), **options)


def merge_and_report(
    adapters: Sequence[str], out: str | None, base: str | None, *, allow_overwrite: bool, best: bool
) -> int:
    """Merge as a command does: print the result or the error, and return the exit code of `merge_from_env`."""
    if not adapters or not out:
        print("set ADAPTERS (folder or glob of checkpoints) and OUTPUT_DIR, or pass ADAPTER and --out", file=sys.stderr)
        return 2
    try:
        chosen = resolve_checkpoint(*adapters, best=best)
        manifest = merge(base or _named_base(chosen), chosen, out, allow_overwrite=allow_overwrite)
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


def flag(env: Mapping[str, str], name: str) -> bool:
    """Whether an environment variable is switched on: 1, true, yes or on."""
    return env.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _named_base(folder: Path) -> str:
    config = folder / peft_adapter.CONFIG_NAME
    named = read_object(config).get("base_model_name_or_path") if config.exists() else None
    if named and not Path(named).is_dir():
        named = _trained_base(folder) or named
    if not named or not Path(named).is_dir():
        fix = "pass the expanded checkpoint that training used as --model (BASE)"
        raise ModelError(
            located("the base of this checkpoint is not a local folder", file=folder, found=named, fix=fix)
        )
    return named


def _trained_base(result: Path) -> str | None:
    """The base of a result of training, which names no local folders, from the job beside it."""
    key = io.read_json(result / TRAIN_MANIFEST).get("fingerprint") if (result / TRAIN_MANIFEST).is_file() else None
    jobs = sorted((result.resolve().parent / "checkpoints").glob(f"{key}-*/job.json")) if key else []
    return io.read_json(jobs[0])["arguments"].get("model") if jobs else None


def _check_output(base: Path, checkpoint_dir: Path, out: Path, allow_overwrite: bool) -> None:
    if out.resolve() in (base.resolve(), checkpoint_dir.resolve()):
        raise ModelError(
            located("the output folder is also an input of the merge", file=out, fix="choose another folder")
        )
    if out.exists() and not allow_overwrite:
        fix = "choose another output folder, or pass --overwrite (ALLOW_OVERWRITE=1)"
        raise OutputExistsError(located("output folder already exists", file=out, fix=fix))
    refuse_foreign_folder(out, "merge")


def _check_same_tokenizer(base: Path, checkpoint_dir: Path) -> None:
    if not (base / vocab.COORD_FILE).exists():
        return
    expected = read_object(base / vocab.COORD_FILE)
    for folder in (base, checkpoint_dir):
        if (folder / "tokenizer.json").exists():
            vocab.check_tokenizer(folder, expected)


def _check_trained_base(base: Path, checkpoint_dir: Path) -> None:
    """ModelError unless the base has the weights that training recorded; equal shapes do not imply equal weights."""
    manifest = checkpoint_dir / TRAIN_MANIFEST
    expected = read_object(manifest).get("base") if manifest.exists() else None
    found = weights_identity(base) if expected else None
    if expected is not None and not isinstance(expected, dict):
        raise ModelError(located("expected an object", file=manifest, field="base", found=expected))
    if found != expected:
        different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        fix = "merge into the expanded checkpoint that training used"
        raise ModelError(located("this is not the base that training used", file=base, found=different, fix=fix))


def _check_not_nested(base: shards.Checkpoint, adapter: peft_adapter.Adapter) -> None:
    found = nested_modules(adapter.settings.modules_to_save or (), base.names())
    if found:
        problem = (
            f"{found[1]} was trained separately from {found[0]}, which contains it; PEFT saved only one of the copies"
        )
        raise ModelError(located(problem, file=adapter.folder / peft_adapter.CONFIG_NAME, field="modules_to_save"))


def _check_ids(base: Path, plan: update.MergePlan) -> None:
    if plan.offsets is None:
        return
    ids = vocab.coord_ids(base)
    found = (plan.offsets.start, plan.offsets.end)
    if found != (ids.start, ids.end):
        problem = "the coordinate ids of the adapter differ from those of the base"
        raise ModelError(
            located(
                problem,
                file=base,
                expected=(ids.start, ids.end),
                found=found,
                fix="merge into the base that training used",
            )
        )


def _check_not_merged(base: Path, manifest: dict) -> None:
    earlier = base / MANIFEST_NAME
    if not earlier.exists():
        return
    before = read_object(earlier)
    trained, older = before.get("trained"), before.get("merged_before") or []
    if not isinstance(trained, dict) or not isinstance(older, list):
        raise ModelError(located("malformed manifest", file=earlier, fix="merge the checkpoint again"))
    history = [trained.get("weights"), *older]
    if manifest["trained"]["weights"] in history:
        fix = "merge into the checkpoint that training used, not into a merged one"
        raise ModelError(located("this adapter has already been merged into the base", file=base, fix=fix))
    manifest["merged_before"] = history


def _manifest(base: Path, weights: shards.Checkpoint, checkpoint_dir: Path, plan: update.MergePlan) -> dict:
    return {
        "coordexp": coordexp.__version__,
        "code": code_identity(__name__),
        "base": {
            "path": portable_path(base),
            "config": io.sha256_file(base / "config.json"),
            "weights": content_identity(shard.path for shard in weights.shards.values()),
        },
        "trained": {
            "path": portable_path(checkpoint_dir),
            "kind": plan.kind,
            "weights": content_identity(file.path for file in plan.trained_files),
            "recipe": _recipe(checkpoint_dir),
        },
        "applied": plan.applied,
    }


def _recipe(checkpoint_dir: Path) -> dict | None:
    """The training recipe, which determines the prompts of the merged model."""
    manifest = checkpoint_dir / TRAIN_MANIFEST
    return read_object(manifest).get("recipe") if manifest.exists() else None


def _inference_settings(checkpoint_dir: Path) -> InferenceSettings | None:
    """What the training recorded, in its result or, for a `checkpoint-N`, in the folder of its checkpoints."""
    recorded = read_inference_settings(checkpoint_dir)
    if recorded is None and _step(checkpoint_dir) >= 0:
        recorded = read_inference_settings(checkpoint_dir.resolve().parent)
    return recorded


def _linked(plan: update.MergePlan, sha256: dict[Path, dict[str, str]]) -> dict[str, str]:
    """Known hashes of the weight files that are those of one of the folders in `sha256`."""
    sources = {name: update.unchanged_file(name, changes) for name, changes in plan.files.items()}
    known = {name: sha256[s.parent].get(s.name) for name, s in sources.items() if s is not None and s.parent in sha256}
    return {name: digest for name, digest in known.items() if digest is not None}


def _announce(base: Path, plan: update.MergePlan, out: Path) -> None:
    sources = {name: update.unchanged_file(name, changes) for name, changes in plan.files.items()}
    written = {name: update.size(plan.files[name]) for name, source in sources.items() if source is None}
    linked = [source for source in sources.values() if source is not None]
    copied = sum(file.stat().st_size for file in _base_files(base))
    announce_shards("merge", out, written, linked, copied)


def _copy_base_files(base: Path, folder: Path) -> None:
    for file in _base_files(base, report=True):
        shards.link_or_copy(file, folder / file.name)


def _base_files(base: Path, *, report: bool = False) -> Iterator[Path]:
    """The files of the base, other than weights, that are part of the merged checkpoint."""
    excluded = {MANIFEST_NAME, SOURCE_FILE, checksums.FILE_NAME, INFERENCE_SETTINGS, MARKER, shards.INDEX_NAME}
    for file in own_files(base, "merge" if report else None):
        weights = file.suffix in {".safetensors", ".bin", ".pt", ".pth"}
        if not weights and file.name not in excluded:
            yield file
