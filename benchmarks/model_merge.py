"""Expanding and merging a generated multi-gigabyte checkpoint: time against copying the folder, and peak memory.

python benchmarks/model_merge.py --gigabytes 4 --folder /tmp [--swift]
Builds a bf16 Qwen3-VL of that size in several shards (random weights, streamed), an adapter on every linear layer of
the language model with coordinate offsets, and runs `cp -r`, expand, merge and (with --swift) `swift export
--merge_lora`, each in a process of its own. The folder is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from coordexp.model import rows, shards, tiny, vocab

HIDDEN, MLP, HEADS, KV_HEADS = 2560, 9728, 32, 8


def checkpoint(folder: Path, gigabytes: float, shard_bytes: int = 1 << 30) -> Path:
    """A bf16 checkpoint with the 4B model's layer sizes and as many layers as fit, written shard by shard."""
    knobs = {"hidden": HIDDEN, "mlp": MLP, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": 128, "max_length": 262144}
    template = tiny.build(folder / "template", 1, **{**knobs, "hidden": 64, "mlp": 64, "heads": 1, "kv_heads": 1})
    config = json.loads((template / "config.json").read_text())
    table = 151_936
    layer = HIDDEN * 128 * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * MLP
    layers = max(1, round((gigabytes * 1e9 / 2 - table * HIDDEN) / layer))
    text = config["text_config"]
    text |= {"hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": HEADS, "vocab_size": table}
    text |= {"num_key_value_heads": KV_HEADS, "num_hidden_layers": layers, "head_dim": 128}
    text["rope_parameters"]["mrope_section"] = [24, 20, 20]
    config["vision_config"]["out_hidden_size"] = HIDDEN
    config["dtype"] = "bfloat16"
    base = folder / "base"
    base.mkdir()
    for file in template.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, base)
    (base / "config.json").write_text(json.dumps(config, indent=2))
    shapes = _shapes(base)
    _write_shards(base, shapes, shard_bytes)
    shutil.rmtree(template)
    return base


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(base))
    names = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    names.pop("lm_head.weight")
    return names


def _write_shards(base: Path, shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> None:
    groups, size = [[]], 0
    for name, shape in shapes.items():
        need = shards.nbytes("BF16", shape)
        if size and size + need > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += need
    noise = (torch.randn(1 << 22) * 0.02).bfloat16()

    data = rows.to_bytes(noise, "BF16")

    def pieces(count: int):
        for begin in range(0, count, len(data)):
            part = data[: min(count - begin, len(data))]
            yield shards.Job(len(part), lambda out, position, part=part: shards.write_at(out, position, part))

    weight_map = {}
    with shards.workers() as pool:
        for i, group in enumerate(groups, start=1):
            file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
            sizes = {name: shards.nbytes("BF16", shapes[name]) for name in group}
            entries = [shards.Entry(n, "BF16", shapes[n], partial(pieces, sizes[n])) for n in group]
            shards.write_file(base / file, entries, {"format": "pt"}, pool)
            weight_map |= dict.fromkeys(group, file)
    shards.write_index(base, weight_map, sum(shards.nbytes("BF16", s) for s in shapes.values()), {})


def adapter(base: Path, folder: Path, rank: int = 32, with_offsets: bool = True) -> Path:
    """A LoRA adapter on every linear layer of the language model."""
    folder.mkdir()
    checkpoint_ = shards.open_checkpoint(base)
    tensors = {}
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for name in checkpoint_.names():
        if "language_model" in name and name.endswith(tuple(f"{m}.weight" for m in modules)):
            out, inside = checkpoint_.find(name)[1].shape
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inside) * 0.01
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank) * 0.01
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "task_type": "CAUSAL_LM",
        "target_modules": rf".*language_model.*\.({'|'.join(modules)})",
        "base_model_name_or_path": str(base),
        "bias": "none",
    }
    if with_offsets:
        ids = vocab.coord_ids(base)
        tensors["base_model.model.coord_offset_adapter.embed_offset"] = torch.randn(1000, HIDDEN) * 0.01
        config["modules_to_save"] = ["coord_offset_adapter"]
        config["coord_offset"] = {"start": ids.start, "end": ids.end, "tie_head": True}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "args.json").write_text(
        json.dumps({"model": str(base), "model_type": "qwen3_vl", "template": "qwen3_vl"})
    )
    return folder


MEASURE = """
import json, resource, sys, time
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, cpu = time.perf_counter(), time.process_time()
{call}
spent, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = {{"seconds": spent, "cpu": cpu, "peak_gb": peak / 1e6, "above_gb": (peak - before) / 1e6}}
print("RESULT", json.dumps(facts))
"""


def measure(imports: str, call: str) -> dict:
    """Seconds, peak resident memory, and how much of it the call added to the interpreter with its imports."""
    code = MEASURE.format(imports=imports, call=textwrap.dedent(call))
    environ = {**os.environ, "USE_HF": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(lines[0].removeprefix("RESULT "))


def timed_copy(source: Path, target: Path, sync: bool) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    if sync:
        for file in target.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    spent = time.perf_counter() - began
    shutil.rmtree(target)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--swift", action="store_true", help="also run `swift export --merge_lora`")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=args.folder, prefix="merge-benchmark-"))
    try:
        base = checkpoint(root, args.gigabytes)
        os.sync()
        files = sorted(base.glob("*.safetensors"))
        size = sum(f.stat().st_size for f in base.iterdir()) / 1e9
        print(f"checkpoint: {size:.2f} GB in {len(files)} shards", flush=True)
        copy = timed_copy(base, root / "copy", sync=False)
        synced = timed_copy(base, root / "copy", sync=True)
        print(f"copy: {copy:.1f} s, flushed to disk {synced:.1f} s", flush=True)
        call = f"vocab.expand({str(base)!r}, {str(root / 'expanded')!r}, 'numeric')"
        report("expand", measure("import torch; from coordexp.model import vocab", call), copy, synced)
        folder = adapter(root / "expanded", root / "adapter")
        call = f"merge.merge({str(root / 'expanded')!r}, {str(folder)!r}, {str(root / 'merged')!r})"
        report("merge", measure("import torch; from coordexp.model import merge", call), copy, synced)
        if args.swift:
            shutil.rmtree(root / "merged", ignore_errors=True)
            plain = adapter(root / "expanded", root / "plain", with_offsets=False)
            call = f"""
                arguments = ["--adapters", {str(plain)!r}, "--merge_lora", "true",
                    "--model", {str(root / "expanded")!r},
                    "--output_dir", {str(root / "swift")!r}, "--model_type", "qwen3_vl", "--torch_dtype", "bfloat16",
                    "--load_args", "false"]
                export_main(arguments)
            """
            report("swift export", measure("import torch; from swift.pipelines import export_main", call), copy, synced)
    finally:
        shutil.rmtree(root)


def report(name: str, found: dict, copy: float, synced: float) -> None:
    if "failed" in found:
        print(f"{name}: failed: {found['failed']}", flush=True)
        return
    seconds, cpu = found["seconds"], found["cpu"]
    times = (
        f"{seconds:.1f} s ({seconds / copy:.2f} x copy, {seconds / synced:.2f} x flushed copy), processor {cpu:.1f} s"
    )
    print(
        f"{name}: {times}, peak {found['peak_gb']:.2f} GB, {found['above_gb']:.2f} GB above the interpreter", flush=True
    )


if __name__ == "__main__":
    main()
