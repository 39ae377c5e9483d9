"""Which options of PEFT and ms-swift give an adapter that merges exactly: `W + scale * B @ A`, or DoRA of it.

The options of PEFT 0.20 are accepted by name, so that one of a later version is refused until it has been examined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from coordexp.runtime.errors import ConfigError, ModelError, located

# Initialisations after which the base weights are the published ones. The others (pissa, olora, corda, loftq, lora_ga)
# subtract the initial update from the base.
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva", "mica")
NEEDS_PLUGIN = "this adapter contains coord_offset_adapter: `import coordexp.modeling.coord_offset` before loading it"
# Those that ms-swift can run: it does not compute the activations that `eva` needs.
TRAINED_INITIALISATIONS = (None, True, False, "true", "false", "True", "False", "gaussian", "orthogonal", "mica")
TUNERS = (None, "lora", "coordexp", "full")

# Fields of LoraConfig that do not change the formula, or that `adapter.py` takes into account.
_MERGEABLE = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform"),
        *("layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "eva_config", "qalora_group_size"),
        *("lora_dtype", "lorap_lr_ratio"),  # ms-swift's
        *("coord_offset", "target_parameters"),
    )
)
# Fields that change what the adapter computes, or the base: alora_invocation_tokens, arrow_config, corda_config,
# ensure_weight_tying, layer_replication, loftq_config, lora_bias, lora_ga_config, megatron_config, monteclora_config,
# trainable_token_indices, use_bdlora, use_qalora, velora_config. They and unknown ones must be off.
_OFF = (None, False, (), [], {}, "")


class OffsetSettings(msgspec.Struct, frozen=True):
    """Ids of the coordinate tokens that the offsets were trained for."""

    start: int | None = None
    end: int | None = None
    tie_head: bool | None = None


class LoraSettings(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that determine the merge."""

    lora_alpha: float
    peft_type: str | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    base_model_name_or_path: str | None = None
    coord_offset: OffsetSettings | None = None


def lora_settings(config: Any, file: Path) -> LoraSettings:
    """The validated content of an adapter_config.json; ModelError for an option that cannot be merged exactly."""
    found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
    if found != "LORA":
        raise ModelError(
            located("not a LoRA or DoRA adapter", file=file, field="peft_type", expected="LORA", found=found)
        )
    for key, value in config.items():
        if key not in _MERGEABLE and value not in _OFF:
            raise ModelError(located("merging does not support this option", file=file, field=key, found=value))
    try:
        settings = msgspec.convert(config, LoraSettings)
        for pattern in settings.alpha_pattern or ():
            re.compile(pattern)
    except (msgspec.ValidationError, re.error) as error:
        raise ModelError(located(f"invalid adapter configuration: {error}", file=file)) from error
    start = settings.init_lora_weights
    if start not in (None, NEEDS_PLUGIN) and changes_base(start):
        fix = "convert the adapter to a plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        problem = "this initialisation also changed the base weights"
        raise ModelError(located(problem, file=file, field="init_lora_weights", found=start, fix=fix))
    return settings


def changes_base(initialisation: bool | str) -> bool:
    """Whether a value of PEFT's `init_lora_weights` changes the base weights, or is unknown."""
    name = initialisation.lower() if isinstance(initialisation, str) else initialisation
    return name not in INITIALISATIONS


def nested_modules(entries: Iterable[str], tensor_names: Iterable[str]) -> tuple[str, str] | None:
    """Two modules, one inside the other, that `modules_to_save` selects among those with these tensors; None if none.

    PEFT would train a copy of the inner module and save the tensors of the outer one, or the other way round. As in
    PEFT, an entry selects the modules whose name ends with it; `all-norm` of ms-swift selects the norm layers.
    """
    entries = list(entries)
    suffixes = tuple(entry for entry in entries if entry not in ("all-norm", "all-embedding"))
    modules = {name[: match.start()] for name in tensor_names for match in re.finditer(r"\.", name)}
    norms = "all-norm" in entries
    saved = {
        module
        for module in modules
        if (suffixes and module.endswith(suffixes)) or (norms and "norm" in module.rpartition(".")[2])
    }
    for inner in sorted(saved):
        parents = (inner[: match.start()] for match in re.finditer(r"\.", inner))
        outer = next((parent for parent in parents if parent in saved), None)
        if outer is not None:
            return outer, inner
    return None


def check_modules_to_save(tuner: Mapping[str, Any], tensor_names: Iterable[str], file: str | Path) -> None:
    """ConfigError if `modules_to_save` of a recipe selects a module inside another one that it also selects."""
    entries = tuner.get("modules_to_save") or []
    found = nested_modules([entries] if isinstance(entries, str) else entries, tensor_names)
    if found:
        problem, fix = f"selects {found[1]}, which is part of {found[0]}", "name only the outer or only the inner one"
        raise ConfigError(located(problem, file=file, field="modules_to_save", found=entries, fix=fix))
