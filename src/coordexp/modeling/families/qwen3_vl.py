"""Qwen3-VL (dense and mixture of experts): 16-pixel patches, 2x2 of which become one image token of 32x32 pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordexp.modeling.families.family import (
    FAMILIES,
    ModelFamily,
    ModuleNames,
    SpecialTokens,
    SwiftNames,
    TinyOptions,
)
from coordexp.runtime import io

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn

PATCH, MERGE = 16, 2
MIN_TILES, MAX_TILES = 4, 16384  # limits of the processor's own resizing, which CoordExp never uses
REQUIRES = ("transformers>=4.57", "qwen_vl_utils>=0.0.14")


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
        """Those of transformers' own model; None for families that name or stack their tensors differently."""
        if config.get("model_type") != "qwen3_vl":
            return None
        import torch
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        with torch.device("meta"):
            model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def tiny_tokenizer(self, options: TinyOptions) -> Tokenizer:
        """A byte-level BPE of the Qwen class, trained on CoordExp's own text."""
        from coordexp.modeling import qwen_tokenizer

        return qwen_tokenizer.compact_tokenizer(options.vocab_size)

    def write_tiny(self, folder: Path, options: TinyOptions, tokenizer: Tokenizer, seed: int) -> None:
        """`Qwen3VLForConditionalGeneration` with the options' shape."""
        from coordexp.modeling import qwen_tokenizer

        qwen_tokenizer.write_tokenizer(tokenizer, folder, options.max_length)
        _write_processors(folder)
        _write_model(folder, options, tokenizer, seed)


@FAMILIES.register("qwen3_vl_moe")
class Qwen3VLMoe(Qwen3VL):
    """Mixture-of-experts Qwen3-VL: the same tokens, image grid, positions and module names.

    Adapters on attention can be merged; those on the stacked weights of the experts are refused.
    """

    swift = SwiftNames(model_type="qwen3_vl_moe", template="qwen3_vl", requires=REQUIRES)

    tiny_tokenizer = ModelFamily.tiny_tokenizer
    write_tiny = ModelFamily.write_tiny


def _write_processors(folder: Path) -> None:
    pixels = (PATCH * MERGE) ** 2
    common = {
        "size": {"shortest_edge": MIN_TILES * pixels, "longest_edge": MAX_TILES * pixels},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    io.write_json(folder / "preprocessor_config.json", {**common, "image_processor_type": "Qwen2VLImageProcessorFast"})
    video = {**common, "video_processor_type": "Qwen3VLVideoProcessor"}
    io.write_json(folder / "video_preprocessor_config.json", video)


def _config(options: TinyOptions, tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {name: tokenizer.token_to_id(name) for name in names}
    frequencies = options.head_dim // 2
    height = width = frequencies // 3
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": tokenizer.get_vocab_size() + options.pad_rows,
        "hidden_size": options.hidden,
        "intermediate_size": options.mlp,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.head_dim,
        "max_position_embeddings": options.max_length,
        "initializer_range": options.init_std,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [frequencies - height - width, height, width],
            "mrope_interleaved": True,
        },
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "model_type": "qwen3_vl_vision",
        "depth": options.vision_layers,
        "hidden_size": options.vision_hidden,
        "intermediate_size": options.vision_mlp,
        "num_heads": options.vision_heads,
        "out_hidden_size": options.hidden,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "num_position_embeddings": options.positions**2,
        "deepstack_visual_indexes": list(options.deepstack),
        "initializer_range": options.init_std,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": options.tie,
    }


def _write_model(folder: Path, options: TinyOptions, tokenizer: Tokenizer, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(**_config(options, tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        model.init_weights()
        with torch.no_grad():
            _initialise(model, options)
    model.to(getattr(torch, options.dtype))
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=[tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        do_sample=False,
    )
    model.save_pretrained(folder)


def _initialise(model: nn.Module, options: TinyOptions) -> None:
    """Weights that learn quickly from scratch: variance by fan-in, the end of each residual branch damped by depth."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            depth = options.vision_layers if "visual" in name else options.layers
            ends_branch = name.endswith(("o_proj", "down_proj", "attn.proj", "mlp.linear_fc2"))
            gain = 1 / math.sqrt(2 * depth) if ends_branch else 1.0
            torch.nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=options.embed_std)
    if not options.tie:
        torch.nn.init.normal_(model.lm_head.weight, std=options.embed_std)
