"""Time and memory of a training step with the full loss against ms-swift's cross-entropy, and of the data loader.

python benchmarks/train_step.py prepare FOLDER    checkpoints and records (a minute, any machine load)
python benchmarks/train_step.py measure FOLDER    the measurement, on an idle machine: results/train_step.json

Every variant is an ms-swift trainer with the same checkpoint, batch and optimizer; only `loss_type` and the recipe's
loss differ. A step does the same as the trainer's loop: counts of the batch, forward, loss, backward, clipping,
optimizer. Variants alternate step by step in one process. Peak memory is the high-water mark of the resident set during
a step, measured in a separate process per variant; the memory before the step (weights, optimizer) is also given.

Cases: the compact vocabulary, the published one (152,670 rows), 300 objects per image (compact; the shorter the rest
of a step, the larger the share of the matching), and the loader of the demo's recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import unstarted_trainer

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/train_step.json"
WEIGHTS = {"text": 1, "ce": 1, "soft_ce": 1, "w1": 1, "coord_mass": 2, "l1": 1, "giou": 1, "ciou": 1}
FULL = {"weights": WEIGHTS, "temperature": 0.9, "sigma": 1.5, "truncate": 8}
VARIANTS = {"plain": None, "full": FULL, "hungarian": {**FULL, "matching": "hungarian"}}
VARIANTS["remaining"] = {**VARIANTS["hungarian"], "set_targets": "remaining"}
# vocabulary, objects per image, images per batch, timed steps per variant, variants
CASES = {
    "compact": ("compact", 12, 16, 30, ("plain", "full", "remaining")),
    "published": ("published", 20, 2, 8, ("plain", "full", "remaining")),
    "crowd": ("compact", 300, 2, 6, ("plain", "full", "hungarian")),
}
SIDE = 128
NAMES = ["person", "traffic light", "cat", "potted plant", "baseball bat", "cup", "dog", "wine glass", "bench", "kite"]


def prepare(folder: Path) -> None:
    from coordexp.modeling import tiny, vocab

    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    from modeling_helpers import qwen3_tokenizer

    for name, tokenizer in (("compact", None), ("published", qwen3_tokenizer())):
        tiny.build(folder / name / "base", 7, tokenizer=tokenizer, embed_std=0.1)
        vocab.expand(folder / name / "base", folder / name / "model")
    for name, (_, objects, batch, *_) in CASES.items():
        write_records(folder / f"{name}.jsonl", objects, 4 * batch)
    write_records(folder / "loader.jsonl", 2, 640)


def write_records(path: Path, objects: int, images: int) -> None:
    """Noise images with random boxes, in token space."""
    import numpy as np
    from PIL import Image

    from coordexp.records import Metadata, Object, Record, coord_token
    from coordexp.runtime.io import write_jsonl

    rng, random_names = np.random.default_rng(5), random.Random(5)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(images):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        found = []
        for _ in range(objects):
            (x, y), (w, h) = rng.uniform(0.0, 0.6, 2), rng.uniform(0.01, 0.4, 2)
            norm = [float(value) for value in (x, y, x + w, y + h)]
            tokens = [coord_token(round(c * 999)) for c in norm]
            found.append(Object(random_names.choice(NAMES), 1, norm, bbox_2d=tokens))
        rows.append(Record([f"{folder.name}/{n}.png"], SIDE, SIDE, "token", found, Metadata(n, SIDE, SIDE)))
    write_jsonl(path, rows)


def build_trainer(folder: Path, vocabulary: str, jsonl: Path, batch: int, loss: dict | None, **training):
    """An ms-swift trainer that has not started; `loss` None: ms-swift's cross-entropy."""
    from coordexp.recipe import load_recipe

    overrides = {
        "template": {"max_length": 32768},
        "training": {"per_device_train_batch_size": batch, "max_steps": 1000, **training},
        "custom": {"train_jsonl": str(jsonl), "loss": loss or {}},
    }
    recipe = load_recipe(ROOT / "config/train/full_tiny.yaml", overrides)
    out = Path(tempfile.mkdtemp(dir=folder))
    return unstarted_trainer.build_trainer(recipe, folder / vocabulary / "model", out, plain=loss is None)


def step(trainer, batch: dict) -> float:
    """Run one optimizer step as the trainer's loop does; returns seconds."""
    began = time.perf_counter()
    unstarted_trainer.step(trainer, batch)
    return time.perf_counter() - began


def time_case(folder: Path, name: str) -> dict:
    vocabulary, objects, batch, steps, variants = CASES[name]
    jsonl = folder / f"{name}.jsonl"
    trainers = {variant: build_trainer(folder, vocabulary, jsonl, batch, VARIANTS[variant]) for variant in variants}
    inputs = {variant: unstarted_trainer.batches_of(trainer) for variant, trainer in trainers.items()}
    for variant, trainer in trainers.items():
        for batch_inputs in inputs[variant][:2]:
            step(trainer, batch_inputs)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for n in range(steps):
        order = variants if n % 2 == 0 else variants[::-1]
        for variant in order:
            seconds[variant].append(step(trainers[variant], inputs[variant][n % 4]))
    labels = inputs["plain"][0]["labels"]
    reference = seconds["plain"]
    ratios = {name: statistics.median(_ratios(times, reference)) for name, times in seconds.items() if name != "plain"}
    return {
        "objects_per_image": objects,
        "images_per_batch": batch,
        "rows_of_vocabulary": trainers["plain"].model.config.text_config.vocab_size,
        "supervised_tokens": int((labels != -100).sum()),
        "batch_by_length": list(labels.shape),
        "steps": steps,
        "median_seconds": {variant: statistics.median(times) for variant, times in seconds.items()},
        "step_time_ratio": ratios,
        **_added_by_matching(seconds),
    }


def _ratios(times: list[float], reference: list[float]) -> list[float]:
    return [a / b for a, b in zip(times, reference, strict=True)]


def _added_by_matching(seconds: dict[str, list[float]]) -> dict:
    if "hungarian" not in seconds:
        return {}
    return {"matching_adds": statistics.median(_ratios(seconds["hungarian"], seconds["full"])) - 1}


def memory_of(folder: Path, name: str, variant: str) -> dict:
    """Resident memory of one variant in MB: peak during a step, and before it; runs in a separate process."""
    vocabulary, _, batch, _, _ = CASES[name]
    trainer = build_trainer(folder, vocabulary, folder / f"{name}.jsonl", batch, VARIANTS[variant])
    inputs = unstarted_trainer.batches_of(trainer, 1)[0]
    step(trainer, inputs)
    step(trainer, inputs)
    resting = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    step(trainer, inputs)
    return {"peak_mb": _status("VmHWM"), "resting_mb": resting}


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def time_loader(folder: Path, steps: int = 34) -> dict:
    """Waiting time for batches with the demo's recipe and its single loader worker."""
    trainer = build_trainer(folder, "compact", folder / "loader.jsonl", 16, FULL)
    dataset, collate = trainer.train_dataset, trainer.data_collator
    began = time.perf_counter()
    for n in range(8):
        collate([dataset[i] for i in range(16 * n, 16 * n + 16)])
    alone = (time.perf_counter() - began) / 8
    batches = iter(trainer.get_train_dataloader())
    waits, computing = [], []
    for n in range(steps):
        began = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - began)
        took = step(trainer, batch)
        if n >= 4:
            computing.append(took)
    waits = waits[4:]
    ready = []
    for _ in range(5):
        time.sleep(0.5)  # the batch is ready by now: this measures the transfer alone
        began = time.perf_counter()
        next(batches)
        ready.append(time.perf_counter() - began)
    return {
        "workers": trainer.args.dataloader_num_workers,
        "images_per_batch": 16,
        "loader_seconds_per_batch_in_process": alone,
        "median_step_seconds": statistics.median(computing),
        "median_wait_seconds": statistics.median(waits),
        "longest_wait_seconds": max(waits),
        "median_seconds_to_hand_over_what_is_ready": statistics.median(ready),
        "share_of_time_waiting": sum(waits) / (sum(waits) + sum(computing)),
    }


def child(folder: Path, *what: str, env: dict | None = None) -> dict:
    command = [sys.executable, __file__, "child", str(folder), *what]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, threads: int, only: list[str]) -> dict:
    # Makes malloc return freed memory at once, so that the resident set equals the memory in use.
    strict = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    result: dict = json.loads(RESULT.read_text()) if only and RESULT.exists() else {}
    result["threads"] = threads
    for name in only or [*CASES, "loader"]:
        if name == "loader":
            result[name] = child(folder, "loader")
            continue
        result[name] = child(folder, "time", name)
        memory = {variant: child(folder, "memory", name, variant, env=strict) for variant in CASES[name][-1]}
        result[name]["memory"] = memory
        plain = memory["plain"]["peak_mb"]
        result[name]["peak_memory_ratio"] = {v: m["peak_mb"] / plain for v, m in memory.items() if v != "plain"}
        above = {variant: m["peak_mb"] - m["resting_mb"] for variant, m in memory.items()}
        result[name]["above_resting_ratio"] = {a: m / above["plain"] for a, m in above.items() if a != "plain"}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "measure", "child"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", nargs="*", help="measure: cases to measure again, keeping the other results")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.what == "prepare":
        prepare(folder)
    elif args.what == "measure":
        os.environ |= {"OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
        result = measure(folder, args.threads, args.more)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
    else:
        kind, *names = args.more
        out = {"time": time_case, "memory": memory_of, "loader": time_loader}[kind](folder, *names)
        print(json.dumps(out))


if __name__ == "__main__":
    main()
