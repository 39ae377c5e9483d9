"""The machine, and what the measurements work on: a checkpoint with random weights, images and records."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Run, write_row

# hidden, mlp, layers, query heads, key heads; vision hidden, mlp, layers, heads, layers whose features are injected
SHAPES = {
    "2b": (2048, 6144, 28, 16, 8, 1024, 4096, 24, 16, [5, 11, 17]),
    "4b": (2560, 9728, 36, 32, 8, 1024, 4096, 24, 16, [5, 11, 17]),
    "8b": (4096, 12288, 36, 32, 8, 1152, 4304, 27, 16, [8, 16, 24]),
}
IMAGE, TOY_IMAGE = (1024, 768), (128, 96)  # 768 tiles and 12 tiles
OBJECTS = range(9, 18)  # 13 on average
TOY_OBJECTS = range(3, 4)
NAMES = ["person", "traffic light", "cat", "potted plant", "baseball bat", "cup", "dog", "wine glass"]


def describe(run: Run) -> None:
    """Write card, driver and versions."""
    import torch

    names = ("torch", "transformers", "ms-swift", "peft", "numpy")
    facts: dict[str, Any] = {name: importlib.metadata.version(name) for name in names}
    facts |= {"python": platform.python_version(), "shape": run.shape, "toy": run.toy}
    if not run.toy:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        facts["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    (run.out / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    write_row(run, step="environment", **facts)


def write_checkpoint(run: Run) -> None:
    """Write a checkpoint of the chosen shape with random weights, 32 images, and their records."""
    began = time.time()
    parameters = _toy_checkpoint(run.model) if run.toy else _random_checkpoint(run)
    _write_records(run)
    write_row(run, step="checkpoint", seconds=round(time.time() - began, 1), parameters=parameters)


def _toy_checkpoint(folder: Path) -> int:
    from safetensors import safe_open

    from coordexp.modeling import tiny, vocab

    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 64, "layers": 2, "mlp": 128, "pad_rows": 0}
    vision = {"vision_hidden": 48, "vision_layers": 2, "vision_heads": 3, "vision_mlp": 96, "deepstack": (0,)}
    shutil.rmtree(folder.parent / "base", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    vocab.expand(tiny.build(folder.parent / "base", 3, **sizes, **vision), folder)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


def _random_checkpoint(run: Run) -> int:
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    assert run.tokenizer is not None
    config = _config(json.loads((run.tokenizer / "config.json").read_text()), run.shape)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(run.device):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    model.save_pretrained(run.model)
    weights = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    for file in run.tokenizer.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and file.name not in weights:
            shutil.copy(file, run.model / file.name)
    return sum(parameter.numel() for parameter in model.parameters())


def _config(config: dict[str, Any], shape: str) -> dict[str, Any]:
    """The configuration with the sizes of a published checkpoint."""
    hidden, mlp, layers, heads, kv_heads, vision_hidden, vision_mlp, depth, vision_heads, deepstack = SHAPES[shape]
    text = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "head_dim": 128}
    config["text_config"] |= text | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config["text_config"]["rope_parameters"] |= {"rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    vision = {"depth": depth, "hidden_size": vision_hidden, "intermediate_size": vision_mlp, "num_heads": vision_heads}
    vision |= {"out_hidden_size": hidden, "num_position_embeddings": 2304, "deepstack_visual_indexes": deepstack}
    config["vision_config"] |= vision
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
        part.pop("torch_dtype", None)
    return config | {"tie_word_embeddings": shape != "8b"}


def _write_records(run: Run) -> None:
    import numpy as np
    from PIL import Image

    from coordexp.records import Metadata, Object, Record, coord_token
    from coordexp.runtime.io import write_jsonl

    rng = np.random.default_rng(0)
    width, height = TOY_IMAGE if run.toy else IMAGE
    counts = TOY_OBJECTS if run.toy else OBJECTS
    (run.work / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for n in range(4 if run.toy else 32):
        own = width - 32 * (n % 4)  # several lengths, as in real data
        noise = rng.integers(0, 255, (height // 8, own // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((own, height)).save(run.work / f"images/{n}.jpg", quality=90)
        objects = []
        for _ in range(counts[n % len(counts)]):
            (x, y), (w, h) = rng.uniform(0, 0.6, 2), rng.uniform(0.02, 0.39, 2)
            norm = [float(value) for value in (x, y, x + w, y + h)]
            tokens = [coord_token(round(value * 999)) for value in norm]
            objects.append(Object(NAMES[int(rng.integers(len(NAMES)))], 1, norm, bbox_2d=tokens))
        records.append(Record([f"images/{n}.jpg"], own, height, "token", objects, Metadata(n, own, height)))
    write_jsonl(run.work / "train.jsonl", records)
