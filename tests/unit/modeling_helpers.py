"""Small expanded checkpoints, adapters with random weights, and logits, for the tests of coordexp.modeling."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText
from vocabularies import qwen3_tokenizer  # noqa: F401, of the modules that use these helpers

from coordexp.modeling import coord_offset as offsets
from coordexp.modeling import tiny, vocab

SMALL = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 48}
SMALL |= {"vision_hidden": 32, "vision_layers": 2, "vision_heads": 2, "vision_mlp": 48, "deepstack": (0,)}
TARGETS = r".*language_model.*\.(q_proj|o_proj|gate_proj|down_proj)|.*visual.*\.(qkv|linear_fc1)"
LINEAR_TARGETS = r".*linear_attn\.(in_proj_qkv|in_proj_a|out_proj)"  # of Qwen3.5
EXPERT_TARGETS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def expanded(
    folder: Path, *, tie: bool, dtype: str = "float32", sharded: bool = False, init: str = "numeric", **options
) -> Path:
    """An expanded small checkpoint in `folder`/expanded."""
    tiny.build(folder / "base", 3, tie=tie, dtype=dtype, init_std=0.05, embed_std=0.5, **SMALL, **options)
    if sharded:
        reshard(folder / "base")
    vocab.expand(folder / "base", folder / "expanded", init)
    return folder / "expanded"


def reshard(folder: Path, max_size: str = "60KB") -> None:
    """Turn a single-file checkpoint into one with several shards, by transformers itself."""
    model = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=max_size)
    assert (folder / "model.safetensors.index.json").exists()


def load(folder: Path) -> torch.nn.Module:
    """The model of a checkpoint folder in its own dtype, nothing missing, nothing left over."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def adapted(
    base: Path, *, dora: bool = False, offset: bool = True, tie_head: bool = True, seed: int = 0, **lora
) -> PeftModel:
    """The base with an adapter of random weights."""
    ids = vocab.coord_ids(base)
    settings = {"start": ids.start, "end": ids.end} if offset else None
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "use_dora": dora, "task_type": "CAUSAL_LM"} | lora
    torch.manual_seed(seed)
    model = get_peft_model(load(base), offsets.lora_config(settings, tie_head=tie_head, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * noise)
            elif "coord_offset" in name:
                parameter.copy_(0.1 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def batch(base: Path) -> dict[str, torch.Tensor]:
    """Text with many coordinate tokens and one image of 2x3 image tokens."""
    ids = vocab.coord_ids(base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    coords = "".join(f"<|coord_{k}|>" for k in (0, 1, 17, 500, 998, 999))
    text = "<|vision_start|>" + "<|image_pad|>" * 6 + f'<|vision_end|>Detect {{"objects": [{coords}<|coord_*|>'
    input_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
    assert (input_ids >= ids.start).sum() == 6
    pixels = torch.randn(24, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(1))
    image = tokenizer.token_to_id("<|image_pad|>")
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == image).int(),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [1, L, V] float32."""
    return model(**inputs).logits.float()


def rewrite(folder: Path, name: str, change) -> None:
    """Change the tensors of one safetensors file in place."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def in_fresh_process(
    code: str, *args: object, check: bool = True, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run Python code with arguments in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    env = {**os.environ, **(environ or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done
