"""Qwen3.5 (dense and mixture of experts): Qwen3-VL's images, and linear attention in three of four layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coordexp.modeling.families.family import FAMILIES, RecurrentState, SwiftNames, TinyOptions
from coordexp.modeling.families.qwen3_vl import EXPERTS, Qwen3VL

if TYPE_CHECKING:
    from torch import Tensor

REQUIRES = ("transformers>=5.2.0", "qwen_vl_utils>=0.0.14")


@FAMILIES.register("qwen3_5")
class Qwen35(Qwen3VL):
    """Dense Qwen3.5, 0.8B to 27B, and the later 3.6 and 3.8 checkpoints with the same `model_type`.

    Special tokens have the same texts as in Qwen3-VL but other ids, which are read from the tokenizer. Published
    checkpoints contain a head for several next tokens (`mtp`), which is copied and not used.
    """

    swift = SwiftNames(model_type="qwen3_5", template="qwen3_5", requires=REQUIRES)
    transformers = ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration")
    reasoning = True
    unused_tensors = ("mtp.",)

    def recurrent_states(self, prefilled: Any) -> dict[int, RecurrentState]:
        """Those of the gated delta rule."""
        from coordexp.modeling.families import gated_delta_net

        return dict(gated_delta_net.states_after(prefilled))

    @contextmanager
    def decoding_step(self, model: Any, states: dict[int, RecurrentState], mask: Tensor) -> Iterator[Any]:
        """Only layers with full attention have a mask; the others read their states."""
        from coordexp.modeling.families import gated_delta_net

        layers: Any = self.language_model(model).layers
        modules = {index: layers[index].linear_attn for index in states}
        with gated_delta_net.stepping(modules, states):
            yield {"full_attention": mask, "linear_attention": None}

    def tiny_text(self, options: TinyOptions) -> dict[str, Any]:
        """Linear and full attention, with rotary positions on half of each head."""
        from coordexp.modeling.families import tiny_qwen

        rope = tiny_qwen.rope_parameters(options.head_dim // 4) | {"partial_rotary_factor": 0.5}
        linear = {
            "full_attention_interval": options.attention_interval,
            "linear_num_key_heads": options.kv_heads,
            "linear_num_value_heads": options.heads,
            "linear_key_head_dim": options.head_dim,
            "linear_value_head_dim": options.head_dim,
            "linear_conv_kernel_dim": 4,
        }
        return tiny_qwen.text_config(options) | {"rope_parameters": rope} | linear

    def tiny_vision(self, options: TinyOptions) -> dict[str, Any]:
        """Without the additional features of early vision layers."""
        from coordexp.modeling.families import tiny_qwen

        return tiny_qwen.vision_config(options)


@FAMILIES.register("qwen3_5_moe")
class Qwen35Moe(Qwen35):
    """Mixture-of-experts Qwen3.5, 35B-A3B to 397B-A17B; every layer also has a shared expert."""

    swift = SwiftNames(model_type="qwen3_5_moe", template="qwen3_5", requires=REQUIRES)
    transformers = ("Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration")
    experts = EXPERTS

    def tiny_text(self, options: TinyOptions) -> dict[str, Any]:
        """As for the dense model, with experts in every layer."""
        from coordexp.modeling.families import tiny_qwen

        shared = {"shared_expert_intermediate_size": options.expert_mlp}
        return super().tiny_text(options) | tiny_qwen.expert_config(options) | shared
