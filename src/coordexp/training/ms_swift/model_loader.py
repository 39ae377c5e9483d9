"""Model types that never run code from a checkpoint folder.

ms-swift loads with `trust_remote_code=True` unless its loader says otherwise; these types say so.
"""

from __future__ import annotations

import dataclasses

from swift.model import MODEL_MAPPING, ModelArch, register_model
from swift.model.models.qwen import Qwen3VLLoader, Qwen3VLMoeLoader

from coordexp.training.ms_swift.template import NAME as TEMPLATE

DENSE, MOE = "coordexp_qwen3_vl", "coordexp_qwen3_vl_moe"


class SafeQwen3VLLoader(Qwen3VLLoader):
    """Qwen3-VL without remote code."""

    default_trust_remote_code = False


class SafeQwen3VLMoeLoader(Qwen3VLMoeLoader):
    """Qwen3-VL mixture of experts without remote code."""

    default_trust_remote_code = False


def register() -> None:
    """Make `--model_type coordexp_qwen3_vl` (and `..._moe`) known to ms-swift."""
    for name, base, loader in (
        (DENSE, "qwen3_vl", SafeQwen3VLLoader),
        (MOE, "qwen3_vl_moe", SafeQwen3VLMoeLoader),
    ):
        meta = dataclasses.replace(
            MODEL_MAPPING[base],
            model_type=name,
            model_groups=[],
            loader=loader,
            template=TEMPLATE,
            model_arch=ModelArch.qwen3_vl,
            architectures=[],
            requires=["transformers>=4.57", "qwen_vl_utils>=0.0.14"],
        )
        register_model(meta, exist_ok=True)
