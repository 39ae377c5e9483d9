"""Coordinate offsets against PEFT's `trainable_token_indices` on a table of the published size.

python benchmarks/model_offsets.py --hidden 1024 --steps 6
Each method runs in its own process: LoRA on the same layers, and the same 1,000 rows trainable in the input and (tied)
output tables. The time per step, peak memory above the loaded model, trainable parameters and last loss are written to
results/model_offsets.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "model_offsets.json"
METHODS = ("lora", "offsets", "trainable_token_indices")


def prepare(folder: Path, hidden: int) -> None:
    from coordexp.modeling import tiny, vocab

    knobs = {"hidden": hidden, "layers": 2, "heads": hidden // 64, "kv_heads": 2, "head_dim": 64, "mlp": 2 * hidden}
    tiny.build(folder / "base", 1, pad_rows=151_669 - 1_050, embed_std=0.02, **knobs)
    vocab.expand(folder / "base", folder / "model", "numeric")


def one(folder: Path, method: str, steps: int, length: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from coordexp.modeling import coord_offset as offsets
    from coordexp.modeling import vocab

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    ids = vocab.coord_ids(folder / "model")
    common = {"r": 8, "lora_alpha": 16, "target_modules": r".*language_model.*(q|v)_proj", "task_type": "CAUSAL_LM"}
    if method == "offsets":
        config = offsets.lora_config({"start": ids.start, "end": ids.end}, **common)
    elif method == "trainable_token_indices":
        config = LoraConfig(trainable_token_indices=list(range(ids.start, ids.end + 1)), **common)
    else:
        config = LoraConfig(**common)
    model = get_peft_model(model, config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 1000, (1, length), generator=generator)
    tokens[:, ::2] += ids.start
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps):
        began = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    facts = {
        "median_seconds": round(statistics.median(times[1:]), 3),
        "gb_above_the_model": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, 3),
        "trainable_parameters": sum(p.numel() for p in trainable),
        "last_loss": round(loss.item(), 4),
    }
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "METHOD"))
    args = parser.parse_args()
    if args.one:
        one(Path(args.one[0]), args.one[1], args.steps, args.length)
        return
    facts = {"hidden": args.hidden, "tokens": args.length, "steps": args.steps}
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root), args.hidden)
        for method in METHODS:
            command = [sys.executable, __file__, "--one", root, method]
            command += ["--steps", str(args.steps), "--length", str(args.length)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            facts[method] = json.loads(done.stdout.splitlines()[-1])
            print(method, facts[method], flush=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
