"""Expanding and merging a generated multi-gigabyte checkpoint: time against copying the folder, and peak memory.

python benchmarks/model_merge.py --gigabytes 4 --folder /tmp --repeat 5 [--swift]
Builds a bf16 Qwen3-VL of that size in several shards (random weights, streamed) and an adapter on every linear layer of
the language model with coordinate offsets. Then `cp -r`, expand and merge alternate, each in its own process and
timed until its files are flushed to disk; with --swift, `swift export --merge_lora` runs once at the end.
`--prepare` only builds the checkpoint in a folder, which a later run measures and keeps.

In a virtual machine, new page cache takes several times the CPU time of cache that was used before: the same copy took
2.2 to 8.9 s within an hour, and a merge, which bypasses the cache, 3.0 to 4.0 s. The first round is therefore not
counted, and medians and ranges are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from coordexp.modeling import embedding_init as rows
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling import tiny, vocab

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
            yield shards.Job(len(part), lambda out, position, part=part: out.write(position, part))

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
before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
{call}
spent, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
facts = {{"seconds": spent, "user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime}}
facts |= {{"peak_gb": after.ru_maxrss / 1e6, "above_gb": (after.ru_maxrss - before.ru_maxrss) / 1e6}}
print("RESULT", json.dumps(facts))
"""


def measure(imports: str, call: str) -> dict:
    """Seconds, processor time, peak resident memory, and how much of it the call added to its imports."""
    code = MEASURE.format(imports=imports, call=textwrap.dedent(call))
    environ = {**os.environ, "USE_HF": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr)
    return json.loads(lines[0].removeprefix("RESULT "))


def copy(source: Path, target: Path) -> dict:
    """`cp -r`, flushed to disk as expand and merge flush what they write."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in (*target.iterdir(), target):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": spent, "user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime}


def expand(root: Path, target: Path) -> dict:
    call = f"vocab.expand({str(root / 'base')!r}, {str(target)!r}, 'numeric')"
    return measure("import torch; from coordexp.model import vocab", call)


def merge(root: Path, target: Path) -> dict:
    call = f"merge.merge({str(root / 'expanded')!r}, {str(root / 'adapter')!r}, {str(target)!r})"
    return measure("import torch; from coordexp.model import merge", call)


def swift_export(root: Path, target: Path) -> dict:
    call = f"""
        arguments = ["--adapters", {str(root / "plain")!r}, "--merge_lora", "true",
            "--model", {str(root / "expanded")!r}, "--output_dir", {str(target)!r},
            "--model_type", "qwen3_vl", "--torch_dtype", "bfloat16", "--load_args", "false"]
        export_main(arguments)
    """
    return measure("import torch; from swift.pipelines import export_main", call)


def prepare(root: Path, gigabytes: float) -> None:
    base = checkpoint(root, gigabytes)
    vocab.expand(base, root / "expanded", "numeric")
    adapter(root / "expanded", root / "adapter")
    adapter(root / "expanded", root / "plain", with_offsets=False)
    os.sync()


def summary(runs: list[dict]) -> dict:
    """Median and range of every figure."""
    return {
        key: {"median": round(statistics.median(found), 3), "range": [round(min(found), 3), round(max(found), 3)]}
        for key in runs[0]
        for found in [[run[key] for run in runs]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--swift", action="store_true", help="also run `swift export --merge_lora`")
    parser.add_argument("--prepare", action="store_true", help="only build the inputs, and keep them")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    root = args.folder / "merge-benchmark"
    kept = root.exists()
    if not kept:
        root.mkdir()
        prepare(root, args.gigabytes)
    if args.prepare:
        return
    try:
        report(root, args)
    finally:
        shutil.rmtree(root / "out", ignore_errors=True)
        if not kept:
            shutil.rmtree(root)


def report(root: Path, args: argparse.Namespace) -> None:
    base, out = root / "base", root / "out"
    jobs = {
        "copy": lambda: copy(root / "expanded", out),
        "expand": lambda: expand(root, out),
        "merge": lambda: merge(root, out),
    }
    runs: dict[str, list[dict]] = {name: [] for name in jobs}
    for turn in range(args.repeat + 1):
        for name, job in jobs.items():
            found = job()
            shutil.rmtree(out)
            print(turn or "not counted", name, {key: round(value, 2) for key, value in found.items()}, flush=True)
            if turn:
                runs[name].append(found)
    if args.swift:
        runs["swift export"] = [swift_export(root, out)]
    facts = {name: summary(found) for name, found in runs.items()}
    for name in facts.keys() - {"copy"}:
        ratios = [run["seconds"] / other["seconds"] for run, other in zip(runs[name], runs["copy"], strict=False)]
        facts[name] |= summary([{"times_copy": ratio} for ratio in ratios])
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    facts |= {"gigabytes": round(size / 1e9, 2), "shards": len(list(base.glob("*.safetensors")))}
    facts |= {"cores": len(os.sched_getaffinity(0)), "repetitions": args.repeat}
    text = json.dumps(facts, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
