"""Model types whose loaders never run code from a checkpoint folder.

ms-swift loads with `trust_remote_code=True` unless the loader of the model type disables it.
"""

from __future__ import annotations

import dataclasses

from swift.model import MODEL_MAPPING, register_model

from coordexp.modeling.families import FAMILIES


def register() -> None:
    """Register a model type `coordexp_...` with ms-swift for every model family."""
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
