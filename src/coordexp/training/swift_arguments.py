"""The arguments that a recipe and the workflow give to ms-swift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordexp.modeling.families import family_of
from coordexp.recipe import Recipe
from coordexp.runtime.errors import ConfigError


def swift_arguments(recipe: Recipe, model_dir: Path, checkpoints: Path, logging_dir: Path) -> dict[str, Any]:
    """ms-swift's arguments: those of the recipe, and those that the workflow sets.

    ConfigError if the recipe sets one of the latter.
    """
    # coordexp_checkpoints clears save_total_limit, which coordexp_time_estimate reads first.
    callbacks = ["coordexp_time_estimate", "coordexp_checkpoints"]
    if recipe.custom.detection_eval.every:
        callbacks = ["coordexp_best", *callbacks]
    names = family_of(model_dir).swift
    suffix = "_delete" if recipe.template.get("truncation_strategy") == "delete" else ""
    owned = {
        "model": str(model_dir.resolve()),
        "model_type": recipe.model.get("model_type", names.our_model_type),
        "template": f"{names.our_template}{suffix}",
        "dataset": ["coordexp_train"],
        "val_dataset": ["coordexp_val"] if recipe.custom.val_jsonl else [],
        "loss_type": "coordexp",
        "output_dir": str(checkpoints),
        "logging_dir": str(logging_dir),
        "add_version": False,
        "check_model": False,
        "strict": True,
        "lazy_tokenize": not recipe.swift_arguments.get("packing", False),  # packing needs all lengths in advance
        "load_from_cache_file": False,
        "dataset_shuffle": False,
        "report_to": ["tensorboard"],
        "callbacks": [*callbacks, *recipe.training.get("callbacks", [])],
    }
    clash = sorted(key for key in recipe.swift_arguments if key in owned and key not in ("model_type", "callbacks"))
    if clash:
        raise ConfigError(f"{', '.join(clash)}: set by the workflow\n  -> remove it from the recipe")
    return {**recipe.swift_arguments, **owned, "truncation_strategy": "delete"}  # ms-swift's "delete" raises an error


def cap_workers(arguments: dict[str, Any], processes: int, threads: int) -> dict[str, Any]:
    """`arguments` with at most as many loader workers per training process as it has CPU threads.

    `processes` on a machine share its `threads`.
    """
    requested, most = arguments.get("dataloader_num_workers") or 0, max(threads // processes, 1)
    if requested <= most:
        return arguments
    print(
        f"train: {most} instead of {requested} loader workers per training process: {processes} training "
        f"processes share {threads} CPU threads\n"
        "  -> raise train.threads (--threads), or lower data.dataloader_num_workers",
        flush=True,
    )
    return {**arguments, "dataloader_num_workers": most}
