"""Initialisations of the new rows and of the tiny model: which learns boxes faster on generated shapes.

A plain loop, cross-entropy on the answer: python benchmarks/model_init.py --steps 400 --init mean numeric
Prints, for each setting, the validation loss of coordinate tokens and the share of boxes at IoU >= .5 (bins taken by
argmax under teacher forcing) along the way.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from coordexp.answers.render import PromptStyle, hf_chat, render_answer
from coordexp.datasets.formats import shapes
from coordexp.geometry.boxes import iou
from coordexp.modeling import tiny, vocab
from coordexp.records import Object, coord_tokens


def samples(processor, count: int, seed: int, root: Path) -> list[dict]:
    """Encoded images: pixel values [36, 1536], ids [L], first answer position."""
    shapes.generate(shapes.ShapesOptions(count=count, seed=seed), root / "images", root / "annotations.json")
    ground_truth = json.loads((root / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    boxes: dict[int, list] = {}
    for annotation in ground_truth["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    prompt = processor.apply_chat_template(hf_chat(PromptStyle()), add_generation_prompt=True)
    prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * 9)
    files = {f.name: f for f in root.rglob("*") if f.suffix in {".jpg", ".png"}}
    made, prompt_ids = [], processor.tokenizer(prompt).input_ids
    tokens = coord_tokens()
    for image in ground_truth["images"]:
        name = Path(image.get("file_name") or image["coco_url"]).name
        pixels = processor.image_processor(images=[Image.open(files[name]).convert("RGB")], return_tensors="pt")
        objects = []
        for a in sorted(boxes.get(image["id"], []), key=lambda a: (a["bbox"][1], a["bbox"][0])):
            x, y, w, h = (v / 96 for v in a["bbox"])
            bins = [min(999, max(0, round(v * 999))) for v in (x, y, x + w, y + h)]
            desc = names[a["category_id"]].replace("_", " ")
            objects.append(Object(desc=desc, category_id=1, norm=[0.0] * 4, bbox_2d=[tokens[b] for b in bins]))
        answer = render_answer(objects, PromptStyle()) + "<|im_end|>"
        ids = prompt_ids + processor.tokenizer(answer).input_ids
        made.append({"pixels": pixels["pixel_values"], "ids": ids, "answer": len(prompt_ids)})
    return made


def collate(batch: list[dict], pad: int, image: int) -> dict[str, torch.Tensor]:
    length = max(len(s["ids"]) for s in batch)
    ids = torch.full((len(batch), length), pad)
    labels = torch.full((len(batch), length), -100)
    for row, s in enumerate(batch):
        n = len(s["ids"])
        ids[row, :n] = torch.tensor(s["ids"])
        labels[row, s["answer"] : n] = ids[row, s["answer"] : n]
    mask = (torch.arange(length)[None] < torch.tensor([len(s["ids"]) for s in batch])[:, None]).long()
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image).int(),
        "pixel_values": torch.cat([s["pixels"] for s in batch]),
        "image_grid_thw": torch.tensor([[1, 6, 6]] * len(batch)),
    }


@torch.no_grad()
def evaluate(model, batches: list[dict], ids: vocab.CoordIds) -> tuple[float, float]:
    """(loss of coordinate tokens, share of boxes at IoU >= .5)."""
    model.eval()
    losses, hits, total = [], 0, 0
    for batch in batches:
        labels = batch["labels"]
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        target = labels[:, 1:]
        slots = (target >= ids.start) & (target <= ids.end)
        losses.append(torch.nn.functional.cross_entropy(logits[slots], target[slots], reduction="sum").item())
        found = logits[slots][:, ids.start : ids.end + 1].argmax(-1).view(-1, 4).numpy() / 999
        ground_truth = (target[slots] - ids.start).view(-1, 4).numpy() / 999
        found = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], 1)
        overlap = np.array([iou(a[None], b[None]).item() for a, b in zip(found, ground_truth, strict=True)])
        hits, total = hits + int((overlap >= 0.5).sum()), total + len(ground_truth)
    model.train()
    return sum(losses) / (4 * total), hits / total


def run(init: str, knobs: dict, args: argparse.Namespace, root: Path) -> None:
    base = tiny.build(root / "base", args.seed, **knobs)
    vocab.expand(base, root / "model", init)
    processor = AutoProcessor.from_pretrained(root / "model")
    model = AutoModelForImageTextToText.from_pretrained(root / "model").train()
    ids, tokenizer = vocab.coord_ids(root / "model"), processor.tokenizer
    pad, image = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|image_pad|>")
    train = samples(processor, args.images, 1, root / "train")
    val = samples(processor, 128, 2, root / "val")
    calibration = [collate(val[i : i + 32], pad, image) for i in range(0, len(val), 32)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.95))
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * s / args.steps))
    )
    order = np.random.default_rng(0)
    began, curve, spent = time.perf_counter(), [], 0.0
    for step in range(1, args.steps + 1):
        batch = collate([train[i] for i in order.integers(0, len(train), 32)], pad, image)
        began = time.perf_counter()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        spent += time.perf_counter() - began
        if step % (args.steps // 4) == 0:
            curve.append("step {}: loss {:.3f} iou50 {:.3f}".format(step, *evaluate(model, calibration, ids)))
    print(f"{init} {knobs}: {1000 * spent / args.steps:.0f} ms a step; " + "; ".join(curve), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--init", nargs="+", default=["mean", "numeric"])
    parser.add_argument("--knobs", type=json.loads, nargs="+", default=[{}])
    args = parser.parse_args()
    for knobs in args.knobs:
        for init in args.init:
            with tempfile.TemporaryDirectory() as root:
                run(init, knobs, args, Path(root))


if __name__ == "__main__":
    main()
