"""Predictions with vLLM against our decoder: same checkpoint, same tokens; run it with the Python of `make vllm`.

    python benchmarks/infer_vllm.py [--images 64] [--tokens 200] [--threads 2]

Builds a tiny Qwen3-VL with the published vocabulary (152,670 entries) and random weights, whose answers the limits end,
and predicts the same images with both engines, each in a process of its own and after a warm-up. Prints tokens per
second, of time and of CPU time: on a busy machine only the latter can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_images import images

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))


def measure(engine: str, model: str, count: int, tokens: int, threads: int) -> dict[str, object]:
    import torch

    from coordexp.answers.render import PromptStyle
    from coordexp.inference.engines import open_predictor
    from coordexp.inference.options import PredictOptions
    from coordexp.inference.predictor import Request
    from coordexp.inference.prompts import Prompt

    torch.set_num_threads(threads)
    options = PredictOptions(engine=engine, batch_size=16, max_new_tokens=tokens, max_repeats=10**6, max_desc_tokens=6)
    predictor = open_predictor(model, options, PromptStyle())
    shown = images(count)
    predictor.answer(shown[:4], [Prompt()] * 4)
    wall, cpu = time.perf_counter(), time.process_time()
    requests = (Request(n, image, Prompt()) for n, image in enumerate(shown))
    answers = dict(pair for rows in predictor.stream(requests, options.batch_size) for pair in rows)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    written = [answers[n].tokens for n in range(count)]
    total = sum(map(len, written))
    return {
        "tokens": total,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "tokens_per_second": round(total / wall, 1),
        "tokens_per_cpu_second": round(total / cpu, 1),
        "answers": written,
    }


def in_process(engine: str, model: str, given: argparse.Namespace) -> dict[str, object]:
    arguments = ["--engine", engine, "--model", model, "--threads", str(given.threads)]
    arguments += ["--images", str(given.images), "--tokens", str(given.tokens)]
    env = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "VLLM_CPU_KVCACHE_SPACE": "1"}
    env["PYTHONPATH"] = str(REPOSITORY / "src")
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        print(json.dumps(measure(given.engine, given.model, given.images, given.tokens, given.threads)))
        return
    from vocabularies import qwen3_tokenizer

    from coordexp.modeling import tiny, vocab

    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder) / "base", 7, tokenizer=qwen3_tokenizer())
        vocab.expand(Path(folder) / "base", Path(folder) / "expanded")
        found = {engine: in_process(engine, f"{folder}/expanded", given) for engine in ("transformers", "vllm")}
    ours, theirs = (found[engine].pop("answers") for engine in ("transformers", "vllm"))
    ratios = {
        f"ratio_{name}": round(found["vllm"][name] / found["transformers"][name], 3)
        for name in ("tokens_per_second", "tokens_per_cpu_second")
    }
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    settings = {name: getattr(given, name) for name in ("images", "tokens", "threads")}
    print(json.dumps({**settings, "same_answers": same, **ratios, **found}, indent=2))


if __name__ == "__main__":
    main()
