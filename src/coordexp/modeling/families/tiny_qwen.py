"""Tiny models of the Qwen-VL families: processor files, sections of config.json, and random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordexp.modeling.families.family import TinyOptions
from coordexp.runtime import io

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

PATCH, MERGE = 16, 2
# Exponents of 10: factors of the decay rates of linear attention, by head. Those of transformers, softplus(1), would
# let most heads forget every token at once.
SLOWEST_FASTEST = (-3, -1)
MIN_TILES, MAX_TILES = 4, 16384  # limits of the processor's own resizing, which CoordExp never uses


def write_processors(folder: Path) -> None:
    """Write the configurations of the image and video processors."""
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


def rope_parameters(frequencies: int) -> dict[str, Any]:
    """Interleaved M-RoPE with this many frequencies, shared out between time, height and width."""
    height = width = frequencies // 3
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [frequencies - height - width, height, width],
        "mrope_interleaved": True,
    }


def text_config(options: TinyOptions) -> dict[str, Any]:
    """`text_config` of a dense decoder, without `rope_parameters`."""
    return {
        "hidden_size": options.hidden,
        "intermediate_size": options.mlp,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.head_dim,
        "max_position_embeddings": options.max_length,
        "initializer_range": options.init_std,
    }


def expert_config(options: TinyOptions) -> dict[str, Any]:
    """The keys of `text_config` that describe the experts."""
    return {
        "num_experts": options.experts,
        "num_experts_per_tok": min(options.active_experts, options.experts),
        "moe_intermediate_size": options.expert_mlp,
    }


def vision_config(options: TinyOptions) -> dict[str, Any]:
    """`vision_config` without the layers whose features are added to the language model."""
    return {
        "depth": options.vision_layers,
        "hidden_size": options.vision_hidden,
        "intermediate_size": options.vision_mlp,
        "num_heads": options.vision_heads,
        "out_hidden_size": options.hidden,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "num_position_embeddings": options.positions**2,
        "initializer_range": options.init_std,
    }


def write_model(
    classes: tuple[str, str],
    folder: Path,
    options: TinyOptions,
    sections: dict[str, dict[str, Any]],
    tokenizer: Tokenizer,
    seed: int,
) -> None:
    """Write config.json and random weights of a model class; `classes` are its configuration and itself."""
    import torch
    import transformers

    configuration, model_class = (getattr(transformers, name) for name in classes)
    config = configuration(**_with_ids(sections, options, tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        model.init_weights()
        with torch.no_grad():
            _initialise(model, options)
    model.to(getattr(torch, options.dtype))
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=[tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        do_sample=False,
    )
    model.save_pretrained(folder)


def _with_ids(sections: dict[str, dict[str, Any]], options: TinyOptions, tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {name: tokenizer.token_to_id(name) for name in names}
    special = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
    text = {"vocab_size": tokenizer.get_vocab_size() + options.pad_rows}
    text |= {key: ids[name] for key, name in special.items()}
    return {
        **sections,
        "text_config": sections["text_config"] | text,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": options.tie,
    }


def _initialise(model: nn.Module, options: TinyOptions) -> None:
    """Weights that learn quickly from scratch: variance by fan-in, the end of each residual branch damped by depth."""
    import torch

    ends = ("o_proj", "down_proj", "out_proj", "attn.proj", "mlp.linear_fc2")
    for name, module in model.named_modules():
        depth = options.vision_layers if "visual" in name else options.layers
        damped = 1 / math.sqrt(2 * depth)
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            gain = damped if name.endswith(ends) else 1.0
            torch.nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=options.embed_std)
        elif isinstance(module, torch.nn.Conv1d):  # of linear attention: one filter per channel
            torch.nn.init.normal_(module.weight, std=1 / math.sqrt(module.kernel_size[0]))
        if (bias := getattr(module, "dt_bias", None)) is not None:  # softplus(bias) times exp(A_log) decays the state
            rates = torch.logspace(*SLOWEST_FASTEST, len(bias))
            bias.copy_(rates + (-torch.expm1(-rates)).log())
        for stacked, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3 and "experts" in name:  # [experts, out, in]
                gain = damped if stacked.endswith(ends) else 1.0
                torch.nn.init.normal_(weight, std=gain / math.sqrt(weight.shape[-1]))
    if not options.tie:
        torch.nn.init.normal_(model.lm_head.weight, std=options.embed_std)
