"""The arguments that a recipe and the workflow give to ms-swift."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coordexp.modeling.families import FAMILIES, ModelFamily, family_of
from coordexp.ms_swift_arguments import ALL_EXPERTS
from coordexp.recipe import Recipe
from coordexp.runtime.errors import ConfigError, located, nearest

TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")


def swift_arguments(recipe: Recipe, model_dir: Path, checkpoints: Path, logging_dir: Path) -> dict[str, Any]:
    """ms-swift's arguments: those of the recipe, and those that the workflow sets.

    ConfigError if the recipe sets one of the latter.
    """
    # coordexp_checkpoints clears save_total_limit, which coordexp_time_estimate reads first.
    callbacks = ["coordexp_time_estimate", "coordexp_checkpoints"]
    if recipe.custom.detection_eval.every:
        callbacks = ["coordexp_best", *callbacks]
    if recipe.custom.rollout.active:
        callbacks = ["coordexp_rollouts", *callbacks]
    family = family_of(model_dir)
    names = family.swift
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
        "report_to": ["tensorboard", *trackers(recipe)],
        "callbacks": [*callbacks, *recipe.training.get("callbacks", [])],
    }
    clash = sorted(
        key for key in recipe.swift_arguments if key in owned and key not in ("model_type", "callbacks", "report_to")
    )
    if clash:
        raise ConfigError(f"{', '.join(clash)}: set by the workflow\n  -> remove it from the recipe")
    experts = expert_arguments(recipe.swift_arguments, family)
    return {
        **recipe.swift_arguments,
        **experts,
        **owned,
        "truncation_strategy": "delete",
    }  # ms-swift's "delete" raises an error


def trackers(recipe: Recipe) -> list[str]:
    """The experiment trackers of `training.report_to` other than TensorBoard; ConfigError for one that is unusable."""
    requested = recipe.training.get("report_to") or []
    requested = [requested] if isinstance(requested, str) else list(requested)
    field = "training.report_to"
    for name in requested:
        if name not in TRACKERS:
            raise ConfigError(
                located(f"unknown tracker{nearest(name, TRACKERS)}", field=field, expected=TRACKERS, found=name)
            )
        if find_spec(name) is None:
            raise ConfigError(located(f"{name} is not installed", field=field, fix=f"pip install {name}"))
    return [name for name in dict.fromkeys(requested) if name != "tensorboard"]


def expert_arguments(arguments: dict[str, Any], family: ModelFamily) -> dict[str, Any]:
    """`target_parameters` with the family's names of the weights of its experts, if the recipe adapts them.

    ConfigError for a family without experts, and for options that PEFT lacks for stacked weights.
    """
    if arguments.get("target_parameters") != [ALL_EXPERTS]:
        return {}
    field = "tuner.target_parameters"
    if family.experts is None:
        have = [name for name in FAMILIES.names() if FAMILIES[name].experts is not None]
        fix = "remove it from the recipe, or use a mixture of experts"
        raise ConfigError(located("the model has no experts", field=field, expected=have, fix=fix))
    plain = {"tuner_type": ("lora", "coordexp"), "use_dora": (False,), "lora_dropout": (0,)}
    defaults = {"tuner_type": "lora", "use_dora": False, "lora_dropout": 0.05}  # those of ms-swift
    for name, allowed in plain.items():
        found = arguments.get(name, defaults[name])
        if found not in allowed:
            problem = f"adapters of experts need another value of tuner.{name}"
            fix = f"set tuner.{name}, or remove target_parameters (then the experts are not adapted)"
            raise ConfigError(located(problem, field=field, expected=allowed, found=found, fix=fix))
    return {"target_parameters": [f"{family.experts.module}.{weight}" for weight in family.experts.stacked]}


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
