"""One training run: resolve, resume, run ms-swift, and publish a whole result.

Checkpoints are kept outside the published folder, one folder per training (`training.identity`): a killed job continues
there, and a changed one starts afresh without touching the earlier ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.modeling.families import family_of
from coordexp.modeling.vocab import verified_ids
from coordexp.recipe import DetectionEval, Recipe
from coordexp.runtime.code_identity import content_identity
from coordexp.runtime.errors import ConfigError, ModelError, located
from coordexp.runtime.io import atomic_dir, read_json, write_json, write_jsonl
from coordexp.runtime.locks import disk_is_full, full_disk
from coordexp.training.checkpoints import drop_broken, step, whole_checkpoints
from coordexp.training.identity import (
    record_code,
    recorded_code,
    select_checkpoints,
    training_code,
    training_key,
    training_modules,
)
from coordexp.training.launch import DistributedConfig, launch

MANIFEST = "train_manifest.json"
WEIGHTS = "*.safetensors"
PLUGIN = Path(__file__).with_name("ms_swift") / "plugin.py"  # ms-swift loads its plug-ins by path
EVAL_PLUGIN = PLUGIN.with_name("eval_plugin.py")
LEFT_BEHIND = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "training_args.bin",
    "COMPLETE",
    "args.json",
    "global_step*",  # this and the rest are DeepSpeed's
    "latest",
    "zero_to_*.py",
)


class Job(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that one run needs; paths are absolute. Written to disk for the worker processes."""

    arguments: dict[str, Any]
    custom: dict[str, Any]
    checkpoints: str


def train(
    recipe: Recipe,
    model_dir: Path,
    out_dir: Path,
    log: Path,
    distributed: DistributedConfig | None = None,
    *,
    rerun_on_code_change: bool = False,
    made_from: str | None = None,
) -> dict[str, Any] | None:
    """Train `model_dir` by `recipe` and publish the result as `out_dir`.

    Returns the manifest; None on machines of a larger run that leave publishing to the first one. Beside `log`
    (JSON lines of the loss and its terms) lie checkpoints and TensorBoard files, kept between runs. The published
    folder holds an adapter (LoRA, offsets) or, for full-parameter training, a whole checkpoint, and
    `train_manifest.json`. A finished training is published again without another step, by default whatever code made
    it. `made_from` is the workflow's identity of the training's configuration, for the manifest.
    """
    refuse_remote_code(model_dir)
    if recipe.custom.coord_tokens.enabled:
        verified_ids(model_dir)
    distributed = distributed or DistributedConfig()
    key = training_key(recipe, model_dir, distributed.world_size)
    work_dir, code = log.resolve().parent, training_code(recipe)
    checkpoints = select_checkpoints(
        work_dir / "checkpoints",
        key,
        code,
        lambda folder: _finished(folder, recipe.custom.detection_eval),
        rerun_on_code_change=rerun_on_code_change,
    )
    if not _finished(checkpoints, recipe.custom.detection_eval):
        record_code(checkpoints, code, training_modules(recipe))
    arguments = swift_arguments(recipe, model_dir, checkpoints, work_dir / "tensorboard" / checkpoints.name)
    job = Job(
        arguments=cap_workers(arguments, distributed),
        custom=msgspec.to_builtins(recipe.custom),
        checkpoints=str(checkpoints),
    )
    job_file = checkpoints / "job.json"
    write_json(job_file, job)
    if not _run_to_the_end(job_file, distributed, recipe.custom.detection_eval):
        return None
    facts = {"fingerprint": key, "code": recorded_code(checkpoints), "made_from": made_from}
    return _publish(checkpoints, out_dir, log, facts, recipe, model_dir, distributed)


def _run_to_the_end(job_file: Path, distributed: DistributedConfig, watched: DetectionEval) -> bool:
    """Train what is left; whether this machine is the one that publishes."""
    checkpoints = job_file.parent
    first = os.environ.get("NODE_RANK", "0") == "0"  # of several machines that were started by hand
    if first:
        drop_broken(checkpoints)
    if _finished(checkpoints, watched):
        return first
    try:
        return launch(job_file, distributed)
    except ModelError as error:
        full = disk_is_full(None, checkpoints)
        if first:
            drop_broken(checkpoints)  # what a full disk cut off; makes room for the message
        if full:
            raise ModelError(full_disk(checkpoints)) from error
        raise


def _finished(checkpoints: Path, watched: DetectionEval) -> bool:
    """Whether the last whole checkpoint is where training ended: resumed there, the trainer would go on."""
    whole = whole_checkpoints(checkpoints)
    if not whole:
        return False
    state = read_json(whole[-1] / "trainer_state.json")
    over = watched.every and watched.is_over(state["log_history"], state["best_global_step"])
    return bool(over) or state["global_step"] >= state["max_steps"]


def refuse_remote_code(model_dir: Path) -> None:
    """ModelError for a checkpoint that wants to run its own code.

    ms-swift reads a model's config with `trust_remote_code=True` before any loader of ours is asked; code
    runs only for a config with `auto_map`, so such a folder never gets there.
    """
    for file in sorted(model_dir.glob("*.json")):
        content = read_json(file)
        if isinstance(content, dict) and "auto_map" in content:
            fix = "use a checkpoint of a model family that transformers implements itself"
            raise ModelError(located("names code of its own (`auto_map`), which is never run", file=file, fix=fix))


def swift_arguments(recipe: Recipe, model_dir: Path, checkpoints: Path, logging_dir: Path) -> dict[str, Any]:
    """ms-swift's arguments: the recipe's, under those that the workflow owns."""
    watched = bool(recipe.custom.detection_eval.every)
    plugins = [PLUGIN, *([EVAL_PLUGIN] if watched else [])]
    # coordexp_checkpoints takes save_total_limit away, which coordexp_forecast reads.
    callbacks = [*(["coordexp_best"] if watched else []), "coordexp_forecast", "coordexp_checkpoints"]
    names = family_of(model_dir).swift
    suffix = "_delete" if recipe.template.get("truncation_strategy") == "delete" else ""
    owned = {
        "model": str(model_dir.resolve()),
        "model_type": recipe.model.get("model_type", names.our_model_type),
        "external_plugins": [str(plugin) for plugin in plugins],
        "template": f"{names.our_template}{suffix}",
        "dataset": ["coordexp_train"],
        "val_dataset": ["coordexp_val"] if recipe.custom.val_jsonl else [],
        "loss_type": "coordexp",
        "output_dir": str(checkpoints),
        "logging_dir": str(logging_dir),
        "add_version": False,
        "check_model": False,
        "strict": True,
        "lazy_tokenize": not recipe.swift_arguments.get("packing", False),  # packing needs every length beforehand
        "load_from_cache_file": False,
        "dataset_shuffle": False,
        "report_to": ["tensorboard"],
        "callbacks": [*callbacks, *recipe.training.get("callbacks", [])],
    }
    clash = sorted(key for key in recipe.swift_arguments if key in owned and key not in ("model_type", "callbacks"))
    if clash:
        raise ConfigError(f"{', '.join(clash)}: set by the workflow, not by a recipe\n  -> remove them from the recipe")
    return {**recipe.swift_arguments, **owned, "truncation_strategy": "delete"}  # its template then raises


def cap_workers(arguments: dict[str, Any], distributed: DistributedConfig) -> dict[str, Any]:
    """`arguments` with at most as many loader processes beside a training process as its share of the threads."""
    asked = arguments.get("dataloader_num_workers") or 0
    if asked <= distributed.share:
        return arguments
    print(
        f"train: {distributed.share} of {asked} loader processes beside each training process: "
        f"{distributed.processes} of these share {distributed.threads} CPU threads\n"
        "  -> raise train.threads (--threads) to have them all, or lower data.dataloader_num_workers",
        flush=True,
    )
    return {**arguments, "dataloader_num_workers": distributed.share}


def _publish(
    checkpoints: Path,
    out_dir: Path,
    log: Path,
    facts: dict[str, Any],
    recipe: Recipe,
    model_dir: Path,
    distributed: DistributedConfig,
) -> dict[str, Any]:
    whole = whole_checkpoints(checkpoints)
    if not whole:
        raise ModelError(f"{checkpoints}: training left no whole checkpoint\n  -> set training.save_strategy: steps")
    state = read_json(whole[-1] / "trainer_state.json")
    write_jsonl(log, state["log_history"])
    settings = recipe.custom.detection_eval
    candidates = [p for p in whole if step(p) == state["best_global_step"]] if settings.every else whole
    if not candidates:
        fix = "was it deleted? move the folder away to train afresh"
        raise ModelError(located("the best checkpoint is gone", file=checkpoints, found=whole, fix=fix))
    chosen = candidates[-1]
    best = {"metric": settings.metric, "value": state["best_metric"], "last_step": state["global_step"]}
    manifest = {
        **facts,
        "checkpoint": chosen.name,
        "step": step(chosen),
        "best": best if settings.every else None,
        "kind": "adapter" if (chosen / "adapter_config.json").exists() else "full",
        "recipe": msgspec.to_builtins(recipe),
        "layout": {"processes": distributed.processes, "nodes": distributed.nodes},
        "base": weights_identity(model_dir),
        "weights": content_identity(sorted(chosen.glob(WEIGHTS))),
    }
    with atomic_dir(out_dir) as scratch:
        shutil.copytree(chosen, scratch, ignore=shutil.ignore_patterns(*LEFT_BEHIND), dirs_exist_ok=True)
        write_json(scratch / MANIFEST, manifest)
    return manifest
