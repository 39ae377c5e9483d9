"""Model types whose loaders never run code from a checkpoint folder.

ms-swift loads with `trust_remote_code=True` unless the loader of the model type disables it. It also reads the
configuration before it knows the model type, always with `trust_remote_code=True`, which no option disables.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from swift.model import MODEL_MAPPING, model_meta, register_model
from swift.utils import get_logger
from transformers import AutoConfig

from coordexp.modeling.families import FAMILIES


class SafeAutoConfig:
    """transformers' AutoConfig for ms-swift, without code from the checkpoint folder."""

    @staticmethod
    def from_pretrained(folder: str, **options: Any) -> Any:
        """As `AutoConfig.from_pretrained`, but `trust_remote_code` is always False."""
        return AutoConfig.from_pretrained(folder, **options | {"trust_remote_code": False})


def register() -> None:
    """Register a model type `coordexp_...` with ms-swift for every model family; disable code from checkpoints."""
    model_meta.AutoConfig = SafeAutoConfig
    get_logger().addFilter(_is_true)
    for name in FAMILIES.names():
        swift = FAMILIES[name].swift
        original = MODEL_MAPPING[swift.model_type]
        loader = type(f"Safe{original.loader.__name__}", (original.loader,), {"default_trust_remote_code": False})
        meta = dataclasses.replace(
            original,
            model_type=swift.our_model_type,
            model_groups=[],
            loader=loader,
            template=swift.our_template,
            model_arch=original.model_arch.arch_name,
            architectures=[],
            requires=list(swift.requires),
        )
        register_model(meta, exist_ok=True)


def _is_true(record: logging.LogRecord) -> bool:
    """False for ms-swift's warning that it is going to run the code of the checkpoint, as it does not."""
    return not (record.funcName == "_get_model_info" and "with trust_remote_code=True" in record.getMessage())
