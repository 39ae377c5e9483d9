"""Constrained decoding against plain `generate`: same checkpoint, same batch, same answers.

    python benchmarks/infer_speed.py [--images 16] [--objects 8] [--threads 2]

Builds a tiny Qwen3-VL with the published vocabulary (152,670 entries), trains it on one answer per image, and generates
these answers with both methods. Prints seconds, and objects and tokens per second.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from random_images import images

from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt
from coordexp.modeling import tiny, vocab
from coordexp.records import Object, coord_token

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from modeling_helpers import qwen3_tokenizer

NAMES = ["person", "traffic light", "black cat", "potted plant", "baseball bat", "cup", "dog", "wine glass"]
STYLE = PromptStyle()
SAMPLED = 2048


def answers(count: int, objects: int) -> list[str]:
    rng = random.Random(3)
    rendered = []
    for _ in range(count):
        things = []
        for _ in range(objects):
            (x1, x2), (y1, y2) = (sorted(rng.sample(range(0, 1000, 25), 2)) for _ in range(2))
            bins = [coord_token(k) for k in (x1, y1, x2, y2)]
            things.append(Object(rng.choice(NAMES), 1, [0.0, 0.0, 1.0, 1.0], bbox_2d=bins))
        rendered.append(render_answer(things, STYLE))
    return rendered


def teach(predictor: Predictor, shown: list[Image.Image], texts: list[str], limit: int) -> int:
    """Train until every token of every answer is the most likely one by a margin; returns the number of steps.

    The softmax is over the tokens in use and a new random sample of the others in each step, which keeps all of the
    others unlikely.
    """
    prompts = [predictor.prompt_text() + text + "<|im_end|>" for text in texts]
    batch = predictor.encode(shown, prompts)
    lengths = [len(predictor.processor.tokenizer(text + "<|im_end|>").input_ids) for text in texts]
    width = batch["input_ids"].shape[1]
    target = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for row, length in enumerate(lengths):
        target[row, width - length :] = True
    used, where = batch["input_ids"][target].unique(return_inverse=True)
    model = predictor.model.train()
    unused = torch.ones(model.lm_head.weight.shape[0], dtype=torch.bool)
    unused[used] = False
    unused = unused.nonzero()[:, 0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(1, limit + 1):
        hidden = model.model(**batch).last_hidden_state
        columns = torch.cat([used, unused[torch.randint(len(unused), (SAMPLED,))]])
        logits = F.linear(hidden[:, :-1][target[:, 1:]], model.lm_head.weight[columns])
        loss = F.cross_entropy(logits, where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (logits.argmax(-1) == where).float().mean().item()
        if step % 25 == 0:
            print(
                f"training: step {step}, loss {loss.item():.4f}, accuracy {accuracy:.4f}", file=sys.stderr, flush=True
            )
        if accuracy == 1.0 and loss.item() < 0.01:
            break
    model.eval()
    return step


def timed(function) -> tuple[float, object]:
    began = time.perf_counter()
    with torch.inference_mode():
        result = function()
    return time.perf_counter() - began, result


def measure(predictor: Predictor, shown: list[Image.Image], tokens: int) -> dict[str, float]:
    prompts = [predictor.prompt_text()] * len(shown)
    inputs = predictor.encode(shown, prompts)
    start = inputs["input_ids"].shape[1]
    end = predictor.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def plain() -> list[str]:
        # stop at the taught end token only: an untaught token of the large vocabulary is sometimes more likely
        generated = predictor.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=end)
        return predictor.processor.batch_decode(generated[:, start:], skip_special_tokens=False)

    def constrained() -> list[str]:
        return [predictor.text(a) for a in predictor.answer(shown, [Prompt()] * len(shown))]

    constrained()
    runs = [(timed(plain), timed(constrained)) for _ in range(3)]
    slow, fast = min(r[0][0] for r in runs), min(r[1][0] for r in runs)
    plain_texts, texts = runs[0][0][1], runs[0][1][1]
    objects = [sum(len(parse_answer(text).objects) for text in found) for found in (plain_texts, texts)]
    same = sum(a.split("<|im_end|>")[0] == b for a, b in zip(plain_texts, texts, strict=True))
    written = sum(len(predictor.processor.tokenizer(text).input_ids) for text in texts)
    return {
        "images": len(shown),
        "objects_plain": objects[0],
        "objects_constrained": objects[1],
        "same_answers": same,
        "seconds_plain": slow,
        "seconds_constrained": fast,
        "objects_per_second_plain": objects[0] / slow,
        "objects_per_second_constrained": objects[1] / fast,
        "ratio_objects_per_second": (objects[1] / fast) / max(objects[0] / slow, 1e-9),
        "tokens_per_second_plain": written / slow,
        "tokens_per_second_constrained": written / fast,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tiny.build(Path(folder) / "base", 7, tokenizer=qwen3_tokenizer())
        vocab.expand(Path(folder) / "base", Path(folder) / "expanded")
        options = PredictOptions(batch_size=chosen.images, max_new_tokens=64 * chosen.objects)
        predictor = Predictor.from_checkpoint(Path(folder) / "expanded", options, STYLE)
    shown = images(chosen.images)
    steps = teach(predictor, shown, answers(chosen.images, chosen.objects), chosen.steps)
    print(json.dumps({"steps": steps, **measure(predictor, shown, 64 * chosen.objects)}, indent=2))


if __name__ == "__main__":
    main()
