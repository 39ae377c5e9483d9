"""The ms-swift optimizer `multimodal_coord_offset`: the groups of `multimodal` and one per table of offsets."""

from __future__ import annotations

from collections import Counter
from typing import Any

from swift.optimizers import optimizers_map
from swift.optimizers.multimodal import MultimodalOptimizerCallback, get_param_startswith
from swift.utils import get_logger
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from coordexp.modeling.adapter import OFFSET_MODULE
from coordexp.recipe import CoordOffset
from coordexp.runtime.errors import ConfigError, located
from coordexp.training.ms_swift.custom_section import custom_section

NAME = "multimodal_coord_offset"

logger = get_logger()


class CoordOffsetOptimizer(MultimodalOptimizerCallback):
    """Groups vit / aligner / llm, each with and without weight decay, plus `embed_offset` and `head_offset`.

    Magnitudes of DoRA are not decayed.

    With `custom.coord_offset.enabled: false` the groups are those of ms-swift's `multimodal`.
    """

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer named by `optim` with these groups, which are logged with their parameter counts."""
        settings = custom_section().coord_offset
        if not settings.enabled:
            return super().create_optimizer(model)
        model = self.trainer.model if model is None else model
        groups = parameter_groups(model, self.args, settings)
        for group in groups:
            count = sum(getattr(p, "ds_numel", p.numel()) for p in group["params"])
            rates = f"lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
            logger.info(
                f"optimizer group {group['name']}: {len(group['params'])} tensors, {count:,} parameters, {rates}"
            )
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, model)
        return cls(groups, **kwargs)


def parameter_groups(model: nn.Module, args: Any, settings: CoordOffset) -> list[dict[str, Any]]:
    """Groups {params, lr, weight_decay, name} that contain every trainable parameter exactly once.

    ConfigError if the model has no offsets, or if a trainable parameter belongs to no group.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = {name: p for name, p in named.items() if f"{OFFSET_MODULE}." in name}
    if not tables:
        fix = "set tuner.tuner_type: coordexp (offsets are part of an adapter; full-parameter training needs none)"
        raise ConfigError(located("the model has no offsets", field="custom.coord_offset.enabled", fix=fix))
    arch = model.model_meta.model_arch
    rates = {
        "vit": args.learning_rate if args.vit_lr is None else args.vit_lr,
        "aligner": args.learning_rate if args.aligner_lr is None else args.aligner_lr,
        "llm": args.learning_rate,
    }
    prefixes = {
        "vit": (arch.vision_tower, arch.aligner),
        "aligner": (arch.aligner, None),
        "llm": (arch.language_model, None),
    }
    # a decayed magnitude of DoRA would shrink the base weight itself, not its change
    decayed = {n for n in Trainer.get_decay_parameter_names(None, model) if "lora_magnitude_vector" not in n}
    groups = []
    for part, (chosen, rejected) in prefixes.items():
        members = dict(get_param_startswith(model, chosen, rejected))
        for decay, weight_decay in ((False, 0.0), (True, args.weight_decay)):
            params = [p for name, p in members.items() if (name in decayed) == decay]
            name = f"{part} {'decay' if decay else 'no decay'}"
            groups.append({"params": params, "lr": rates[part], "weight_decay": weight_decay, "name": name})
    for side, lr in (("embed_offset", settings.embed_lr), ("head_offset", settings.head_lr)):
        params = [p for name, p in tables.items() if name.endswith(side)]
        groups.append({"params": params, "lr": lr, "weight_decay": settings.weight_decay, "name": side})
    _check_partition(named, groups)
    return [group for group in groups if group["params"]]


def register() -> None:
    """Register `optimizer: multimodal_coord_offset` with ms-swift."""
    optimizers_map[NAME] = CoordOffsetOptimizer


def _check_partition(named: dict[str, nn.Parameter], groups: list[dict[str, Any]]) -> None:
    seen = Counter(id(p) for group in groups for p in group["params"])
    wrong = [name for name, p in named.items() if seen[id(p)] != 1]
    if wrong:
        fix = "freeze them; only the vision tower, the aligner, the language model and offsets have groups"
        problem = f"{len(wrong)} trainable parameters are not in exactly one optimizer group; the first is {wrong[0]}"
        raise ConfigError(located(problem, field="training.optimizer", fix=fix))
