"""The ms-swift tuner `coordexp`: ms-swift's LoRA or DoRA, plus coordinate offsets if the recipe enables them."""

from __future__ import annotations

import copy
from typing import Any

from peft import PeftModel, get_peft_model
from swift.pipelines.train import tuner as swift_tuner
from swift.tuner_plugin import PeftTuner, tuners_map
from swift.tuners import Swift
from torch import nn

from coordexp.modeling import coord_offset as offsets
from coordexp.modeling import vocab
from coordexp.modeling.adapter import OFFSET_KEY, OFFSET_MODULE
from coordexp.recipe import CoordOffset
from coordexp.runtime.errors import ConfigError, ModelError, located
from coordexp.training.ms_swift.custom_section import custom_section

NAME = "coordexp"


class CoordOffsetTuner(PeftTuner):
    """LoRA or DoRA from ms-swift's arguments; with `custom.coord_offset.enabled: false` like the tuner `lora`."""

    @staticmethod
    def prepare_model(args: Any, model: nn.Module) -> nn.Module:
        """A new adapter on `model`; ModelError if the recipe's ids are not those of the model's tokenizer."""
        settings = custom_section().coord_offset
        if not settings.enabled:
            model.requires_grad_(False)
            return swift_tuner.prepare_adapter(_as_lora(args), model)
        ids = offset_ids(settings, args.model_dir)
        _refuse_fused_head(args)
        config = offsets.lora_config(
            ids, tie_head=settings.tie_head, dtype=settings.dtype, **_lora_options(args, model)
        )
        if args.lora_dtype is not None:
            config.lora_dtype = args.lora_dtype  # ms-swift reads it from the configuration
        return get_peft_model(model, config)

    @staticmethod
    def from_pretrained(model: nn.Module, model_id: str, **kwargs: Any) -> nn.Module:
        """The adapter of a checkpoint; ModelError if it has no offsets although the recipe enables them."""
        enabled = custom_section().coord_offset.enabled
        loaded = (PeftModel if enabled else Swift).from_pretrained(model, model_id, **kwargs)
        found = getattr(loaded.peft_config[loaded.active_adapter], OFFSET_KEY, None)
        if enabled and not found:
            fix = "resume with the recipe that wrote the checkpoint, or train from scratch"
            raise ModelError(
                located("checkpoint has no coordinate offsets", file=model_id, field=OFFSET_MODULE, fix=fix)
            )
        return loaded


def offset_ids(settings: CoordOffset, model_dir: str) -> dict[str, int]:
    """{start, end} of the coordinate tokens in the tokenizer; ModelError if the recipe has other ids."""
    ids = vocab.verified_ids(model_dir)
    found = {"start": ids.start, "end": ids.end}
    if settings.ids is not None:
        named = {"start": settings.ids.start, "end": settings.ids.end}
        if named != found:
            fix = "remove custom.coord_offset.ids to use the tokenizer's, or train the model that these ids belong to"
            problem = "the coordinate ids of the recipe differ from those of the tokenizer"
            raise ModelError(
                located(problem, file=model_dir, field="custom.coord_offset.ids", expected=found, found=named, fix=fix)
            )
    return found


def register() -> None:
    """Register `tuner_type: coordexp` with ms-swift."""
    tuners_map[NAME] = CoordOffsetTuner


def _as_lora(args: Any) -> Any:
    plain = copy.copy(args)
    plain.tuner_type = "lora"
    return plain


def _lora_options(args: Any, model: nn.Module) -> dict[str, Any]:
    """The options that ms-swift passes to PEFT for its tuner `lora`."""
    return {
        "task_type": (args.task_type or "causal_lm").upper(),
        "r": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": args.lora_dropout,
        "bias": args.lora_bias,
        "use_rslora": args.use_rslora,
        "use_dora": args.use_dora,
        "init_lora_weights": args.init_weights,
        "target_modules": swift_tuner.get_target_modules(args, model),
        "target_parameters": args.target_parameters,
        "modules_to_save": swift_tuner.get_modules_to_save(args, model),
    }


def _refuse_fused_head(args: Any) -> None:
    if getattr(args, "use_liger_kernel", False):
        fix = "set use_liger_kernel: false"
        raise ConfigError(located("its fused loss skips the output layer, so head offsets would not train", fix=fix))
