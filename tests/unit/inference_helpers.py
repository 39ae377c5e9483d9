"""A tiny checkpoint taught a few answers, so that its choices are unambiguous and its answers differ."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from coordexp.answers.render import PromptStyle, hf_chat, render_answer
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.grammar.automaton import BOX_ROLES
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling import tiny, vocab
from coordexp.records import Object, Prediction, coord_token

SIZES = [(96, 96), (128, 64), (64, 64), (160, 96), (32, 64)]
ORDERS = ("desc_first", "geometry_first")
NAMES = ["cat", "black cat", 'a "dog"', "traffic light", "bun (food)"]


def images(count: int = len(SIZES)) -> list[Image.Image]:
    """Noise in different colours and sizes, all on the model's grid."""
    rng = np.random.default_rng(0)
    shades = [rng.integers(0, 255, 3) for _ in SIZES]
    noise = [rng.integers(-20, 20, (h, w, 3)) for w, h in SIZES]
    arrays = [np.clip(n + s, 0, 255).astype(np.uint8) for n, s in zip(noise, shades, strict=True)]
    return [Image.fromarray(array) for array in arrays[:count]]


def read(path: Path) -> list[Prediction]:
    """The lines of a predictions.jsonl."""
    return [msgspec.json.decode(line, type=Prediction) for line in path.read_bytes().splitlines()]


def objects(seed: int, poly: bool = False) -> list[Object]:
    """One to four objects in token space."""
    rng = random.Random(seed)
    found = []
    for n in range(1 + seed % 4):
        (x1, x2), (y1, y2) = (sorted(rng.sample(range(1000), 2)) for _ in range(2))
        if poly and n % 2:
            geometry = {"poly": [coord_token(k) for k in (x1, y1, x2, y1, x2, y2, x1, y2)]}
        else:
            geometry = {"bbox_2d": [coord_token(k) for k in (x1, y1, x2, y2)]}
        found.append(Object(desc=rng.choice(NAMES), category_id=1, norm=[0.0, 0.0, 1.0, 1.0], **geometry))
    return found


@functools.cache
def taught_checkpoint(style: PromptStyle, *, poly: bool = False, steps: int = 100) -> Path:
    """An expanded tiny checkpoint trained for `steps` steps on one answer per image of `images`; cached per session."""
    folder = Path(tempfile.mkdtemp(prefix="coordexp-taught-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sizes = {"hidden": 64, "heads": 2, "kv_heads": 1, "layers": 2, "mlp": 128, "vocab_size": 600}
    tiny.build(folder / "plain", 7, **sizes, vision_hidden=48, vision_layers=1, vision_mlp=96, deepstack=(0,))
    vocab.expand(folder / "plain", folder / "expanded")
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder / "expanded")
    model = AutoModelForImageTextToText.from_pretrained(folder / "expanded", dtype=torch.float32)
    prompt = processor.apply_chat_template(hf_chat(style), add_generation_prompt=True, tokenize=False)
    answers = [render_answer(objects(n, poly), style) + "<|im_end|>" for n in range(len(SIZES))]
    inputs = processor(
        text=[prompt + answer for answer in answers],
        images=[[image] for image in images()],
        padding=True,
        do_resize=False,
        return_tensors="pt",
    )
    prompt_lengths = [
        processor(text=[prompt], images=[[image]], do_resize=False, return_tensors="pt")["input_ids"].shape[1]
        for image in images()
    ]
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, length in enumerate(prompt_lengths):
        first = int(inputs["attention_mask"][row].argmax())
        labels[row, : first + length] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "taught")
    processor.save_pretrained(folder / "taught")
    return folder / "taught"


def open_predictor(order: str = "desc_first", answer_format: str = "json", **options) -> Predictor:
    """A predictor of boxes and polygons, with a checkpoint that was taught in this field order and answer format."""
    style = PromptStyle(object_field_order=order, answer_format=answer_format)
    options = {"max_new_tokens": 300, "geometry": ("bbox_2d", "poly"), **options}
    folder = taught_checkpoint(style, poly=True, steps=50)
    return Predictor.from_checkpoint(folder, PredictOptions(**options), style)


def tokens_of(predictor: Predictor, objects: list[Object], labels: tuple[str, ...] | None) -> list[int]:
    """Tokens of an answer; coordinate tokens in a description are spelled in ordinary tokens unless they are labels."""
    text, tokenize = render_answer(objects, predictor.style), predictor.vocabulary.tokenize
    if labels:
        return tokenize(text)
    pieces = text.replace("<|coord_5|>", "\0<|\0coord_5|>\0").split("\0")
    return [token for piece in pieces for token in tokenize(piece)]


def run_with(answer: GenerationState, tokens: list[int], first_coord: int) -> None:
    """Simulate a model that generates `tokens`."""
    while answer.finish is None:
        done = len(answer.tokens)
        choices = []
        for index in [*answer.drafts, len(answer.pending)]:
            node = answer.node if index == len(answer.pending) else answer.pending[index].node
            token = tokens[min(done + index, len(tokens) - 1)]  # past the end: behind a draft that fails
            k = token - first_coord
            choices.append(
                TokenChoice(token, -0.5, DecodedCoordinate(k, k, 1.0, -0.5, 0.9) if node.kind == "slot" else None)
            )
        answer.advance(choices)


def allowed_tokens(predictor: Predictor, tokens: Sequence[int]) -> list[int]:
    """The tokens that may follow `tokens` in an answer; empty at its end. Repeats the rules of the grammar."""
    grammar, first = predictor.grammar(), predictor.ids.start
    node, box = grammar.node(grammar.start), []
    for token in tokens:
        if node.kind == "slot":
            box = [*(box if node.role in BOX_ROLES[1:] else []), token - first]
        node = grammar.node(node.after(token))
    if node.kind == "slot":
        corner = BOX_ROLES.index(node.role) if node.role in BOX_ROLES else 0
        low = box[corner - 2] + 1 if corner >= 2 else 0
        high = 998 if node.role in ("x1", "y1") else 999
        return list(range(first + low, first + high + 1))
    return {"choice": list(node.follow), "text": np.flatnonzero(node.allowed).tolist(), "end": []}[node.kind]


def slow_answer(predictor: Predictor, image: Image.Image, limit: int) -> tuple[list[int], list[float]]:
    """One token at a time without a cache."""
    inputs = predictor.encode([image], [predictor.prompt_text()])
    tokens, logprobs = [], []
    while len(tokens) < limit and (allowed := allowed_tokens(predictor, tokens)):
        generated = torch.tensor([tokens], dtype=torch.long)
        full = dict(inputs)
        full["input_ids"] = torch.cat([inputs["input_ids"], generated], 1)
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        full["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(generated)], 1)
        with torch.inference_mode():
            scores = predictor.model(**full, use_cache=False).logits[0, -1, allowed].float().log_softmax(-1)
        best = int(scores.argmax())
        tokens.append(allowed[best])
        logprobs.append(float(scores[best]))
    return tokens, logprobs


def generated_answer(predictor: Predictor, image: Image.Image, limit: int) -> tuple[list[int], list[float]]:
    """By `generate` of transformers, greedy, with the constraint of the grammar and then the end of the turn."""
    inputs = predictor.encode([image], [predictor.prompt_text()])
    start, end = inputs["input_ids"].shape[1], predictor.processor.tokenizer.eos_token_id
    with torch.inference_mode():
        generated = predictor.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=limit,
            prefix_allowed_tokens_fn=lambda _, ids: allowed_tokens(predictor, ids[start:].tolist()) or [end],
            return_dict_in_generate=True,
            output_scores=True,
        )
    tokens = [token for token in generated.sequences[0, start:].tolist() if token != end]
    scores = [score[0].float().log_softmax(-1) for score in generated.scores]
    return tokens, [float(score[token]) for score, token in zip(scores, tokens, strict=False)]
