"""A small real Qwen3-VL with random weights, as an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec
from tokenizers import Tokenizer

from coordexp.modeling import qwen_tokenizer
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError, located

PATCH, MERGE = 16, 2  # Qwen3-VL: 16-pixel patches, 2x2 of them make one image token of 32x32 pixels


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and form of the model. The defaults train within minutes on two CPU cores.

    hidden: width of the text model; the vision tower has `vision_hidden`.
    heads, kv_heads, head_dim: attention of the text model (head_dim divisible by 4).
    deepstack: vision layers whose features are added to the first text layers.
    positions: side of the learned grid of vision positions, interpolated to the image.
    tie: one table for input and output, as in the published 2B and 4B models.
    vocab_size: entries of the compact byte-level BPE before the 26 added tokens.
    pad_rows: unused rows at the end of the embedding table, as published checkpoints have them.
    init_std: standard deviation of linear layers; embeddings take `embed_std`.
    """

    hidden: int = 96
    layers: int = 4
    heads: int = 3
    kv_heads: int = 3
    head_dim: int = 32
    mlp: int = 256
    vision_hidden: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    vision_mlp: int = 256
    deepstack: tuple[int, ...] = (0, 1, 2)
    positions: int = 16
    tie: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vocab_size: int = 1024
    pad_rows: int = 0
    max_length: int = 32768
    init_std: float = 0.02
    embed_std: float = 0.1


def build(out_dir: str | Path, seed: int, *, tokenizer: Tokenizer | None = None, **knobs: Any) -> Path:
    """Write a complete checkpoint folder and return it; the same seed and knobs give the same weights.

    `tokenizer` replaces the compact one (a fixture with the published vocabulary passes its own).
    Unknown or impossible `knobs` (see `Knobs`) raise ModelError.
    """
    out_dir = Path(out_dir)
    try:
        shape = msgspec.convert(knobs, Knobs)
    except msgspec.ValidationError as error:
        fix = f"knobs are {', '.join(Knobs.__struct_fields__)}"
        raise ModelError(located(f"unusable knob of the tiny model: {error}", fix=fix)) from error
    tokenizer = tokenizer or qwen_tokenizer.compact_tokenizer(shape.vocab_size)
    with io.atomic_dir(out_dir) as folder:
        qwen_tokenizer.write_tokenizer(tokenizer, folder, shape.max_length)
        _write_processors(folder)
        _write_model(folder, shape, tokenizer, seed)
    return out_dir


def _write_processors(folder: Path) -> None:
    common = {
        "size": {"shortest_edge": 4 * (PATCH * MERGE) ** 2, "longest_edge": 16384 * (PATCH * MERGE) ** 2},
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


def _config(shape: Knobs, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {name: tokenizer.token_to_id(name) for name, _ in qwen_tokenizer.QWEN_ADDED_TOKENS}
    frequencies = shape.head_dim // 2
    height = width = frequencies // 3
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": tokenizer.get_vocab_size() + shape.pad_rows,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_length,
        "initializer_range": shape.init_std,
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
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_mlp,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "num_position_embeddings": shape.positions**2,
        "deepstack_visual_indexes": list(shape.deepstack),
        "initializer_range": shape.init_std,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": shape.tie,
    }


def _write_model(folder: Path, shape: Knobs, tokenizer: Tokenizer, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(**_config(shape, tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        model.init_weights()
        with torch.no_grad():
            _initialise(model, shape)
    model.to(getattr(torch, shape.dtype))
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=[tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        do_sample=False,
    )
    model.save_pretrained(folder)


def _initialise(model: Any, shape: Knobs) -> None:
    """Weights that learn quickly from nothing: variance by fan-in, residual branches damped by depth."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            depth = shape.vision_layers if "visual" in name else shape.layers
            ends_branch = name.endswith(("o_proj", "down_proj", "attn.proj", "mlp.linear_fc2"))
            gain = 1 / math.sqrt(2 * depth) if ends_branch else 1.0
            torch.nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=shape.embed_std)
    if not shape.tie:
        torch.nn.init.normal_(model.lm_head.weight, std=shape.embed_std)
