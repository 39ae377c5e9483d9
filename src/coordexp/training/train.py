"""One training run: resume from the last complete checkpoint, run ms-swift, and publish the result.

Checkpoints are kept outside the published folder, in one folder per training (`training.identity`): an interrupted run
resumes there, and a changed one starts from scratch without touching earlier checkpoints.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from coordexp.answers.inference_settings import FILE_NAME as INFERENCE_SETTINGS
from coordexp.modeling.adapter_options import check_modules_to_save
from coordexp.modeling.checkpoint_files import weights_identity
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.checksums import verify_checksums, write_checksums
from coordexp.modeling.safetensors_io import open_checkpoint
from coordexp.modeling.vocab import verified_ids
from coordexp.recipe import DetectionEval, Recipe
from coordexp.runtime.code_identity import content_identity
from coordexp.runtime.errors import ConfigError, ModelError, located
from coordexp.runtime.io import read_json, write_json, write_jsonl
from coordexp.runtime.local_paths import make_files_portable, recorded, replace_paths
from coordexp.runtime.locks import disk_is_full, full_disk
from coordexp.runtime.notices import notice
from coordexp.runtime.output_guard import is_output, output_dir, refuse_foreign_folder
from coordexp.training.checkpoints import COMPLETION_MARKER, complete_checkpoints, remove_incomplete, step_of
from coordexp.training.identity import (
    record_code,
    recorded_code,
    select_checkpoints,
    training_code,
    training_key,
    training_modules,
)
from coordexp.training.job import Job
from coordexp.training.launch import DistributedConfig, launch
from coordexp.training.recorded_settings import settings_of_training
from coordexp.training.short_training import training_data, warnings
from coordexp.training.supervise import LOG
from coordexp.training.swift_arguments import cap_workers, swift_arguments

MANIFEST = "train_manifest.json"
TRAINER_STATE = "trainer_state.json"
WEIGHTS = "*.safetensors"
# Files of a checkpoint that are needed only to resume.
NOT_PUBLISHED = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "training_args.bin",
    COMPLETION_MARKER,
    "args.json",
    "global_step*",  # this and the following are DeepSpeed's
    "latest",
    "zero_to_*.py",
)


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
    """Train `model_dir` with `recipe` and publish the result as `out_dir`.

    Returns the manifest, or None on machines other than the first of several. Checkpoints and TensorBoard files are
    kept between runs in the folder of `log` (JSON lines of the loss and its terms). The published folder contains an
    adapter (LoRA, offsets) or, for full-parameter training, a full checkpoint, and `train_manifest.json`. A finished
    training is published again without another step, by default even if different code made it. `made_from` is the
    workflow's identity of the training configuration, for the manifest.
    """
    refuse_foreign_outputs(out_dir, log)
    check_checkpoint(model_dir)
    verify_checksums(model_dir)
    if recipe.swift_arguments.get("modules_to_save"):
        check_modules_to_save(recipe.swift_arguments, open_checkpoint(model_dir).names(), "recipe")
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
        arguments=cap_workers(arguments, distributed.processes, distributed.threads),
        custom=msgspec.to_builtins(recipe.custom),
        checkpoints=str(checkpoints),
    )
    if os.environ.get("NODE_RANK", "0") == "0":
        data = training_data(recipe)
        for text in [] if recipe.custom.fusion_config else warnings(recipe, data, distributed.world_size):
            notice(f"warning: {text}")
    job_file = checkpoints / "job.json"
    write_json(job_file, job)
    write_json(checkpoints / INFERENCE_SETTINGS, settings_of_training(recipe.custom))  # for merging a checkpoint-N
    notice(f"train: log {checkpoints / LOG}\ntrain: tensorboard --logdir {work_dir / 'tensorboard'}")
    if not _run(job_file, distributed, recipe.custom.detection_eval):
        return None
    facts = {"fingerprint": key, "code": recorded_code(checkpoints), "made_from": made_from}
    return _publish(checkpoints, out_dir, log, facts, recipe, model_dir, distributed)


def refuse_foreign_outputs(out_dir: Path, log: Path) -> None:
    """ConfigError if the training would replace a folder or a log that no earlier training run wrote."""
    refuse_foreign_folder(out_dir, "train")
    known = is_output(out_dir, "train") or any((log.parent / "checkpoints").glob("*/job.json"))
    if log.exists() and not known:
        fix = "choose an output in another folder, or move the file elsewhere"
        raise ConfigError(located("the log file already exists and was not written by training", file=log, fix=fix))


def _run(job_file: Path, distributed: DistributedConfig, detection: DetectionEval) -> bool:
    """Run the remaining steps; returns whether this machine publishes the result."""
    checkpoints = job_file.parent
    is_first = os.environ.get("NODE_RANK", "0") == "0"  # of several machines that were started by hand
    if is_first:
        remove_incomplete(checkpoints)
    if _finished(checkpoints, detection):
        return is_first
    for newest in complete_checkpoints(checkpoints)[-1:]:  # from which training resumes
        verify_checksums(newest)
    try:
        return launch(job_file, distributed)
    except ModelError as error:
        full = disk_is_full(None, checkpoints)
        if is_first:
            remove_incomplete(checkpoints)  # on a full disk this frees the space that the message needs
        if full:
            raise ModelError(full_disk(checkpoints)) from error
        raise


def _finished(checkpoints: Path, detection: DetectionEval) -> bool:
    """Whether training ended at the last complete checkpoint; a trainer resumed from it would train further."""
    complete = complete_checkpoints(checkpoints)
    if not complete:
        return False
    verify_checksums(complete[-1], TRAINER_STATE)
    state = read_json(complete[-1] / TRAINER_STATE)
    stopped = detection.every and detection.patience_exhausted(state["log_history"])
    return bool(stopped) or state["global_step"] >= state["max_steps"]


def _publish(
    checkpoints: Path,
    out_dir: Path,
    log: Path,
    facts: dict[str, Any],
    recipe: Recipe,
    model_dir: Path,
    distributed: DistributedConfig,
) -> dict[str, Any]:
    complete = complete_checkpoints(checkpoints)
    if not complete:
        fix = "set training.save_strategy: steps"
        raise ModelError(located("training saved no complete checkpoint", file=checkpoints, fix=fix))
    state = read_json(complete[-1] / TRAINER_STATE)
    write_jsonl(log, state["log_history"])
    detection = recipe.custom.detection_eval
    candidates = [p for p in complete if step_of(p) == state["best_global_step"]] if detection.every else complete
    if not candidates:
        fix = "if it was deleted, move the folder elsewhere to train from scratch"
        names = [checkpoint.name for checkpoint in complete]
        raise ModelError(located("the best checkpoint is missing", file=checkpoints, found=names, fix=fix))
    chosen = candidates[-1]
    verify_checksums(chosen)
    best = {"metric": detection.metric, "value": state["best_metric"], "last_step": state["global_step"]}
    manifest = {
        **facts,
        "checkpoint": chosen.name,
        "step": step_of(chosen),
        "best": best if detection.every else None,
        "kind": "adapter" if (chosen / "adapter_config.json").exists() else "full",
        "recipe": replace_paths(msgspec.to_builtins(recipe), recorded),
        "distributed": {"processes": distributed.processes, "nodes": distributed.nodes},
        "base": weights_identity(model_dir),
        "weights": content_identity(sorted(chosen.glob(WEIGHTS))),
    }
    with output_dir(out_dir, "train") as scratch:
        shutil.copytree(chosen, scratch, ignore=shutil.ignore_patterns(*NOT_PUBLISHED), dirs_exist_ok=True)
        shutil.copy(checkpoints / INFERENCE_SETTINGS, scratch)
        write_json(scratch / MANIFEST, manifest)
        make_files_portable(scratch, model_dir, model_dir.resolve())
        write_checksums(scratch)
    return manifest
