"""Qwen3-VL (dense and mixture of experts): 16-pixel patches, 2x2 of which become one image token of 32x32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from coordexp.modeling.families.family import (
    FAMILIES,
    ExpertNames,
    ModelFamily,
    ModuleNames,
    SpecialTokens,
    SwiftNames,
    TinyOptions,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

REQUIRES = ("transformers>=4.57", "qwen_vl_utils>=0.0.14")
EXPERTS = ExpertNames("mlp.experts", {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)})


@FAMILIES.register("qwen3_vl")
class Qwen3VL(ModelFamily):
    """Dense Qwen3-VL, 2B to 32B; embeddings are tied in the published 2B and 4B checkpoints only."""

    tokens = SpecialTokens(image_pad="<|image_pad|>", video_pad="<|video_pad|>", end_of_turn="<|im_end|>")
    modules = ModuleNames(
        embedding="model.language_model.embed_tokens",
        head="lm_head",
        language_model="model.language_model",
        vision_tower="model.visual",
    )
    swift = SwiftNames(model_type="qwen3_vl", template="qwen3_vl", requires=REQUIRES)
    forward_state = ("rope_deltas",)
    reasoning: ClassVar[bool] = False  # whether the chat template of every checkpoint lets the model reason by default
    transformers = ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration")  # configuration and model class

    def is_tied(self, config: dict[str, Any]) -> bool:
        """`tie_word_embeddings`, which older checkpoints hold in `text_config` only."""
        if "tie_word_embeddings" in config:
            return bool(config["tie_word_embeddings"])
        return bool(config.get("text_config", {}).get("tie_word_embeddings", False))

    def untied(self, config: dict[str, Any]) -> dict[str, Any]:
        """Every `tie_word_embeddings` false, at the top and in each nested section that has one."""
        nested = {key: self.untied(value) if isinstance(value, dict) else value for key, value in config.items()}
        if "tie_word_embeddings" in nested or "text_config" in nested:
            nested["tie_word_embeddings"] = False
        return nested

    def patch_size(self, config: dict[str, Any]) -> int:
        """16 pixels in every published checkpoint."""
        return config["vision_config"]["patch_size"]

    def tile_size(self, config: dict[str, Any]) -> int:
        """32 pixels in every published checkpoint."""
        return config["vision_config"]["patch_size"] * config["vision_config"]["spatial_merge_size"]

    def first_positions(self, model: Any, attention_mask: Tensor) -> Tensor:
        """The number of tokens in the prompt plus `rope_deltas`: an image advances the position by less."""
        return attention_mask.sum(-1) + model.model.rope_deltas.reshape(-1)

    def position_ids(self, positions: Tensor) -> Tensor:
        """Interleaved M-RoPE, [3, B, L]: text has the same temporal, height and width position."""
        return positions.expand(3, -1, -1)

    def tensor_shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
        """Those of transformers' own model in memory; None for a subclass with other classes of its own."""
        import torch
        import transformers

        configuration, model_class = (getattr(transformers, name) for name in self.transformers)
        if config.get("model_type") != configuration.model_type:
            return None
        with torch.device("meta"):
            model = model_class(configuration.from_dict(config))
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def tiny_tokenizer(self, options: TinyOptions) -> Tokenizer:
        """A byte-level BPE of the Qwen class, trained on CoordExp's own text."""
        from coordexp.modeling import qwen_tokenizer

        return qwen_tokenizer.compact_tokenizer(options.vocab_size)

    def write_tiny(self, folder: Path, options: TinyOptions, tokenizer: Tokenizer, seed: int) -> None:
        """The family's model class with the options' shape."""
        from coordexp.modeling import qwen_tokenizer
        from coordexp.modeling.families import tiny_qwen

        qwen_tokenizer.write_tokenizer(tokenizer, folder, options.max_length, reasoning=self.reasoning)
        tiny_qwen.write_processors(folder)
        sections = {"text_config": self.tiny_text(options), "vision_config": self.tiny_vision(options)}
        tiny_qwen.write_model(self.transformers, folder, options, sections, tokenizer, seed)

    def tiny_text(self, options: TinyOptions) -> dict[str, Any]:
        """`text_config` of the tiny model; its position ids are those of Qwen3-VL."""
        from coordexp.modeling.families import tiny_qwen

        return tiny_qwen.text_config(options) | {"rope_parameters": tiny_qwen.rope_parameters(options.head_dim // 2)}

    def tiny_vision(self, options: TinyOptions) -> dict[str, Any]:
        """`vision_config` of the tiny model."""
        from coordexp.modeling.families import tiny_qwen

        return tiny_qwen.vision_config(options) | {"deepstack_visual_indexes": list(options.deepstack)}


@FAMILIES.register("qwen3_vl_moe")
class Qwen3VLMoe(Qwen3VL):
    """Mixture-of-experts Qwen3-VL, 30B-A3B and 235B-A22B: the same tokens, image grid, positions and module names."""

    swift = SwiftNames(model_type="qwen3_vl_moe", template="qwen3_vl", requires=REQUIRES)
    transformers = ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration")
    experts = EXPERTS

    def tiny_text(self, options: TinyOptions) -> dict[str, Any]:
        """As for the dense model, with experts in every layer."""
        from coordexp.modeling.families import tiny_qwen

        return super().tiny_text(options) | tiny_qwen.expert_config(options)
