"""Objects per second of every answer format, from the same checkpoint, images and objects.

    python benchmarks/answer_formats.py [--images 16] [--objects 8] [--categories 2] [--layers 4] [--hidden 256]

Builds a Qwen3-VL with random weights and the published vocabulary (152,670 entries). The choices of the model are
computed and then replaced by those of given answers, so that every format lists the same objects. Prints the tokens and
decoding steps per object, and the objects per second of CPU time with the constrained decoder and with plain `generate`
of transformers, each also as the ratio to compact JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coordexp.answers.formats import FORMATS, format_of
from coordexp.answers.render import PromptStyle
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling import tiny, vocab
from coordexp.records import Object, coord_token

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from infer_speed import NAMES
from modeling_helpers import qwen3_tokenizer
from random_images import images

REPEATS = 3
BASELINE = "json, compact"


def objects_of_images(count: int, objects: int, categories: int) -> list[list[Object]]:
    """Boxes sorted from top to bottom, each with one of `categories` descriptions per image."""
    rng = random.Random(3)
    found = []
    for _ in range(count):
        names, rows = rng.sample(NAMES, categories), []
        for _ in range(objects):
            (x1, x2), (y1, y2) = (sorted(rng.sample(range(1000), 2)) for _ in range(2))
            rows.append((y1, x1, y2, x2))
        boxes = [[coord_token(k) for k in (x1, y1, x2, y2)] for y1, x1, y2, x2 in sorted(rows)]
        found.append([Object(rng.choice(names), 1, [0.0, 0.0, 1.0, 1.0], bbox_2d=box) for box in boxes])
    return found


class Scripted:
    """Replaces the choices of a decoder by those of given answers, after the decoder has computed its own."""

    def __init__(self, predictor: Predictor):
        chooser, self.start = predictor.decoder.chooser, predictor.ids.start
        self.answers: dict[int, list[int]] = {}
        self._choose = chooser.choose
        chooser.choose = self.choose

    def choose(self, logits: Any, open_choices: list[Any]) -> list[TokenChoice]:
        self._choose(logits, open_choices)
        choices = []
        for choice in open_choices:
            answer = self.answers[id(choice.state)]
            token = answer[min(choice.position, len(answer) - 1)]
            k = token - self.start
            coordinate = DecodedCoordinate(k, k, 1.0, -0.1, 0.9) if choice.node.kind == "slot" else None
            choices.append(TokenChoice(token, -0.1, coordinate))
        return choices


def best_time(run: Callable[[], None]) -> float:
    """Smallest CPU time of `REPEATS` runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        with torch.inference_mode():
            run()
        times.append(time.process_time() - began)
    return min(times)


def measure(predictor: Predictor, shown: list[Any], found: list[list[Object]], scripted: Scripted) -> dict[str, float]:
    tokenize, written = predictor.vocabulary.tokenize, format_of(predictor.style)
    answers = [tokenize(written.render(written.arrange(objects)) + "<|im_end|>") for objects in found]
    inputs = predictor.encode(shown, [predictor.prompt_text()] * len(shown))
    grammar = predictor.grammar()
    decoder, prompt, end = predictor.decoder, inputs["input_ids"].shape[1], predictor.vocabulary.special["<|im_end|>"]
    steps = 0

    def constrained() -> None:
        nonlocal steps
        states = [GenerationState(grammar, predictor.options) for _ in answers]
        scripted.answers = {id(state): answer for state, answer in zip(states, answers, strict=True)}
        before = decoder.forward_passes
        decoder.run(inputs, states)
        steps = decoder.forward_passes - before
        for state, answer in zip(states, answers, strict=True):
            assert state.finish == "stop" and state.tokens == answer[: len(state.tokens)], predictor.text(state)

    def plain() -> None:
        def forced(row: int, tokens: torch.Tensor) -> list[int]:
            answer = answers[row]
            return [answer[min(len(tokens) - prompt, len(answer) - 1)]]

        longest = max(map(len, answers))
        predictor.model.generate(
            **inputs, max_new_tokens=longest, do_sample=False, prefix_allowed_tokens_fn=forced, eos_token_id=end
        )

    constrained()  # compiles the grammar
    count = sum(map(len, found))
    return {
        "tokens_per_object": sum(len(answer) - 1 for answer in answers) / count,
        "steps_per_object": steps / max(map(len, found)),
        "objects_per_second_constrained": count / best_time(constrained),
        "objects_per_second_plain": count / best_time(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 16), ("objects", 8), ("categories", 2), ("layers", 4), ("hidden", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = PredictOptions(batch_size=chosen.images, max_new_tokens=64 * chosen.objects, max_repeats=10**6)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        size = {"hidden": chosen.hidden, "mlp": 3 * chosen.hidden, "layers": chosen.layers}
        tiny.build(Path(folder) / "base", 7, tokenizer=qwen3_tokenizer(), **size)
        vocab.expand(Path(folder) / "base", Path(folder) / "expanded")
        styles = {"json": PromptStyle(), BASELINE: PromptStyle(json_format="compact")}
        styles |= {name: PromptStyle(answer_format=name) for name in FORMATS.names() if name != "json"}
        for name, style in styles.items():
            predictor = Predictor.from_checkpoint(Path(folder) / "expanded", options, style, "cpu")
            found = objects_of_images(chosen.images, chosen.objects, chosen.categories)
            results[name] = measure(predictor, images(chosen.images), found, Scripted(predictor))
    for measured in results.values():
        for kind in ("constrained", "plain"):
            name = f"objects_per_second_{kind}"
            measured[f"ratio_{kind}"] = measured[name] / results[BASELINE][name]
    print(json.dumps({name: {k: round(v, 3) for k, v in row.items()} for name, row in results.items()}, indent=2))


if __name__ == "__main__":
    main()
