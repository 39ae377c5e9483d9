"""Run every measurement that fits into the given minutes, in order of worth, each in a process of its own.

    python -m benchmarks.gpu --minutes 8 --tokenizer tok --work /scratch --out results
    python -m benchmarks.gpu --toy --minutes 10 --work /tmp/work --out /tmp/results     # every step, on a CPU

It needs no network and no checkpoint: weights of the true shape are random, drawn on the GPU. `--tokenizer` is a folder
with the tokenizer, processor and configuration of an expanded Qwen3-VL (`coordexp expand`), without weights.
Each result is one line of OUT/rows.jsonl, written when it is measured; OUT/environment.json describes the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import decoding, training, workspace
from benchmarks.gpu.rows import Run, write_row
from coordexp.training.launch import ACCELERATOR_VARIABLES

# name, function, most seconds on a GPU
STEPS = [
    ("environment", workspace.describe, 60),
    ("attention", decoding.attention, 60),
    ("checkpoint", workspace.write_checkpoint, 120),
    ("train:plain_lora_b1", training.measure, 75),
    ("train:ours_lora_b1", training.measure, 75),
    ("decode:16", decoding.measure, 90),
    ("train:ours_lora_b8", training.measure, 75),
    ("generate", decoding.generate, 60),
    ("train:ours_dora_b8", training.measure, 75),
    ("decode:48", decoding.measure, 90),
    ("train:plain_lora_b8", training.measure, 75),
    ("train:ours_dora_dropout_b8", training.measure, 75),
    ("decode:1", decoding.measure, 60),
    ("processor", decoding.processor, 60),
    ("train:ours_dora_vit_b8", training.measure, 75),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="no step starts after this time (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; 10 GB for the 4B shape")
    parser.add_argument("--tokenizer", type=Path, help="folder without weights; required unless --toy")
    parser.add_argument("--shape", choices=workspace.SHAPES, default="4b", help="shape of the model (default: 4b)")
    parser.add_argument("--toy", action="store_true", help="tiny model on the CPU: every step, no useful numbers")
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(name for name, *_ in STEPS)}")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.toy or args.tokenizer):
        parser.error("--tokenizer is required without --toy")
    run = Run(
        args.out.resolve(), args.work.resolve(), args.tokenizer and args.tokenizer.resolve(), args.shape, args.toy
    )
    if args.step:
        return _one(run, args.step)
    run.out.mkdir(parents=True, exist_ok=True)
    run.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    failed = [name for name, _, bound in STEPS if _wanted(name, args.only) and not _start(run, name, bound, end)]
    print(f"results: {run.rows}" + (f"; not finished: {', '.join(failed)}" if failed else ""))
    return 1 if failed and args.toy else 0


def _wanted(name: str, only: list[str] | None) -> bool:
    return only is None or name in only or name.split(":")[0] in only


def _start(run: Run, name: str, bound: float, end: float) -> bool:
    """Run a step in a new process; False if it fails or does not fit into the remaining time."""
    remaining = end - time.monotonic()
    if remaining < 10:
        write_row(run, step=name, skipped="no time left")
        return False
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", name, *run.arguments()]
    limit = remaining if run.toy else min(bound, remaining)
    began = time.monotonic()
    with (run.out / f"{name.replace(':', '_')}.log").open("wb") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, timeout=limit, env=_variables(), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
    seconds = round(time.monotonic() - began, 1)
    print(f"{name}: {seconds} s" + (f", failed ({code}), see {log.name}" if code else ""), flush=True)
    if code:
        write_row(run, step=name, failed=str(code), seconds=seconds)
    return not code


def _variables() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **ACCELERATOR_VARIABLES}


def _one(run: Run, name: str) -> int:
    variant = name.partition(":")[2]
    function = next(function for known, function, _ in STEPS if known == name)
    function(run, *([variant] if variant else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
