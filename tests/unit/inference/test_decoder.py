"""Cached batched decoding against plain `generate` and against a slow loop without cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_helpers import SIZES, images, taught_checkpoint
from modeling_helpers import qwen3_tokenizer
from PIL import Image

from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, Limits, TokenChoice
from coordexp.inference.grammar.automaton import BOX_ROLES
from coordexp.inference.grammar.token_grammar import Grammar, Node, compile_grammar
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Checkpoint
from coordexp.inference.prompts import Question
from coordexp.inference.scores import decode_coords, drop_duplicates, read_answer
from coordexp.records import Object, coord_token
from coordexp.runtime.errors import DataError, ModelError

OPEN = Question(None, None)
ORDERS = ("desc_first", "geometry_first")


@pytest.fixture(scope="module")
def folders():
    """Taught checkpoints by field order."""
    styles = [PromptStyle(object_field_order=order) for order in ORDERS]
    made = [taught_checkpoint(style, poly=True, steps=50) for style in styles]
    return dict(zip(ORDERS, made, strict=True))


def open_checkpoint(folders, order: str = "desc_first", **options) -> Checkpoint:
    options = {"max_new_tokens": 300, "geometry": ("bbox_2d", "poly"), **options}
    return Checkpoint(folders[order], PredictOptions(**options), PromptStyle(object_field_order=order))


@pytest.fixture(scope="module")
def checkpoint(folders):
    return open_checkpoint(folders)


class Unconstrained(Grammar):
    """Any token until an end-of-turn token."""

    start = 0

    def __init__(self, size: int, ends: list[int]):
        allowed = np.ones(size, dtype=bool)
        self.nodes = [Node("text", dict.fromkeys(ends, 1), allowed=allowed, default=0), Node("end")]

    def node(self, number: int) -> Node:
        return self.nodes[number]


def generous(tokens: int) -> Limits:
    return Limits(tokens, tokens + 1, tokens + 1, tokens + 1)


def test_without_grammar_the_tokens_are_those_of_generate(checkpoint):
    inputs = checkpoint.encode(images(), [checkpoint.prompt()] * len(SIZES))
    new = 40
    expected = checkpoint.model.generate(**inputs, max_new_tokens=new, do_sample=False)[
        :, inputs["input_ids"].shape[1] :
    ]
    ends = checkpoint.model.generation_config.eos_token_id
    grammar = Unconstrained(checkpoint.model.config.text_config.vocab_size, ends)
    answers = [GenerationState(grammar, generous(new)) for _ in SIZES]
    checkpoint.decoder.run(inputs, answers)
    assert len({tuple(answer.tokens) for answer in answers}) > 1
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert answer.tokens == row[: len(answer.tokens)]
        assert len(answer.tokens) == new or answer.tokens[-1] in ends


def slow_answer(checkpoint: Checkpoint, image: Image.Image, limit: int) -> tuple[list[int], list[float]]:
    """One token at a time, the whole sequence through the whole model each time, every rule written out again."""
    inputs = checkpoint.encode([image], [checkpoint.prompt()])
    grammar, ids = checkpoint.grammar(), checkpoint.ids
    number, tokens, logprobs, box = grammar.start, [], [], []
    while grammar.node(number).kind != "end" and len(tokens) < limit:
        node = grammar.node(number)
        answered = torch.tensor([tokens], dtype=torch.long)
        full = dict(inputs)
        full["input_ids"] = torch.cat([inputs["input_ids"], answered], 1)
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        full["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answered)], 1)
        with torch.inference_mode():
            logits = checkpoint.model(**full, use_cache=False).logits[0, -1].float()
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        if node.kind == "slot":
            place = BOX_ROLES.index(node.role) if node.role in BOX_ROLES else 0
            low = box[place - 2] + 1 if place >= 2 else 0
            high = 998 if node.role in ("x1", "y1") else 999
            allowed[ids.start + low : ids.start + high + 1] = True
        elif node.kind == "choice":
            allowed[list(node.follow)] = True
        else:
            allowed[: len(node.allowed)] = torch.from_numpy(node.allowed)
        scores = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        token = int(scores.argmax())
        if node.kind == "slot":
            box = [*box, token - ids.start] if place else [token - ids.start]
        tokens.append(token)
        logprobs.append(float(scores[token]))
        number = node.after(token)
    return tokens, logprobs


@pytest.mark.parametrize("order", ORDERS)
def test_batched_decoding_equals_the_slow_loop(folders, order):
    checkpoint = open_checkpoint(folders, order, max_desc_tokens=500, max_desc_loops=500, max_repeats=500)
    answers = checkpoint.answer(images(), [OPEN] * len(SIZES))
    for image, answer in zip(images(), answers, strict=True):
        tokens, logprobs = slow_answer(checkpoint, image, 60)
        shared = answer.tokens[:60]
        assert shared == tokens[: len(shared)] and len(shared) >= min(len(tokens), 55)
        assert np.allclose(answer.logprobs[: len(shared)], logprobs[: len(shared)], atol=1e-4)


def test_a_batch_changes_nothing(checkpoint):
    together = checkpoint.answer(images(), [OPEN] * len(SIZES))
    backwards = checkpoint.answer(images()[::-1], [OPEN] * len(SIZES))[::-1]
    for n, image in enumerate(images()):
        (alone,) = checkpoint.answer([image], [OPEN])
        assert alone.tokens == together[n].tokens == backwards[n].tokens
        assert np.allclose(alone.logprobs, together[n].logprobs, atol=1e-4)
        assert [s.value for s in alone.slots] == pytest.approx([s.value for s in together[n].slots], abs=1e-2)


def test_forced_tokens_cost_no_pass_of_their_own(checkpoint):
    before = checkpoint.decoder.forward_passes
    (answer,) = checkpoint.answer(images(1), [OPEN])
    passes = checkpoint.decoder.forward_passes - before
    free = sum(lp != 0.0 for lp in answer.logprobs)
    assert passes <= free + 2 < len(answer.tokens)


@pytest.mark.parametrize("labels", [None, ("cat", "black cat", 'a "dog"')])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", [("bbox_2d",), ("poly",), ("bbox_2d", "poly")])
def test_every_answer_parses(folders, labels, order, geometry):
    checkpoint = open_checkpoint(folders, order, geometry=geometry, max_new_tokens=200, poly_max_points=5)
    for answer in checkpoint.answer(images(3), [Question(None, labels)] * 3):
        text = checkpoint.text(answer)
        parsed = parse_answer(text)
        assert parsed.complete is (answer.finish == "stop")
        assert set(parsed.problems) <= ({"cut_off"} if answer.finish == "length" else set())
        assert all(obj.kind in geometry for obj in parsed.objects)
        if labels:
            assert all(obj.desc in labels for obj in parsed.objects)
        detections, _ = read_answer(answer, text, (96, 96))
        assert len(detections) == len(parsed.objects) > 0
        for detection in detections:
            x1, y1, x2, y2 = detection.norm
            assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 and 0 <= detection.score <= 1
            assert len(detection.spread) == len(detection.bins)
            assert (detection.poly is None) == (len(detection.bins) == 4)


def test_cut_answers_keep_whole_objects_and_certain_tokens(checkpoint):
    (whole,) = checkpoint.answer(images(1), [OPEN])
    for limit in (1, 5, 20, len(whole.tokens) - 1):
        short = GenerationState(checkpoint.grammar(), Limits(limit, 48, 4, 4))
        checkpoint.decoder.run(checkpoint.encode(images(1), [checkpoint.prompt()]), [short])
        assert short.finish == "length" and len(short.tokens) <= limit
        assert short.tokens == whole.tokens[: len(short.tokens)]


def scripted(answer: GenerationState, bins: tuple[int, ...] = (1, 2, 30, 40)) -> None:
    """Play a model that always writes the same object and never closes when it has a choice."""
    while answer.finish is None:
        if not answer.chunk:
            places = [answer.node]
        else:
            places = [answer.chunk[index].node for index in answer.guesses] + [answer.node]
        verdicts = []
        for node in places:
            if node.kind == "slot":
                low, high = answer.bounds(node.role)
                k = bins[len(verdicts) + len(answer.slots) + sum(f.reading is not None for f in answer.chunk) & 3]
                assert low <= k <= high
                verdicts.append(TokenChoice(5000 + k, -0.5, DecodedCoordinate(k, k, 1.0, -0.5, 0.9)))
            else:
                free = answer.candidates(node) or np.flatnonzero(node.allowed).tolist()
                among = sorted(set(free) - set(answer.banned(node)))
                keenly = [t for t in among if t not in node.closes]
                ends = [t for t in keenly if t in node.finish]
                verdicts.append(TokenChoice((ends or keenly or among)[0], -0.1))
        answer.settle(verdicts)


def test_repeated_objects_close_the_answer(checkpoint):
    for repeats in (2, 3):
        answer = GenerationState(checkpoint.grammar(("cat",)), Limits(5000, 48, 4, repeats))
        scripted(answer)
        assert answer.finish == "stop" and answer.problems["repetition_closed"] == 1
        assert len(answer.objects) == repeats + 1  # the first has the answer's head before it


def test_repeated_objects_close_the_answer_where_quote_and_end_are_one_token():
    tokenizer = qwen3_tokenizer()
    grammar = compile_grammar(tokenizer, PromptStyle(object_field_order="geometry_first"))
    answer = GenerationState(grammar, Limits(5000, 48, 4, 3), desc_first=False)
    scripted(answer)
    assert answer.finish == "stop" and answer.problems["repetition_closed"] == 1 and len(answer.objects) < 6


def test_a_loop_in_a_description_is_closed(checkpoint):
    node = checkpoint.grammar()
    answer = GenerationState(node, Limits(400, 48, 4, 2))
    word = checkpoint._vocabulary.cut("cat")[0]
    while answer.finish is None and not answer.slots:
        asked = [answer.chunk[index].node for index in answer.guesses] + [answer.node]
        verdicts = []
        for place in asked:
            if place.kind == "slot":
                verdicts.append(TokenChoice(5000, -0.5, DecodedCoordinate(0, 0.0, 1.0, -0.5, 0.9)))
            else:
                among = answer.candidates(place)
                token = word if among is None else next(t for t in among if t not in place.closes)
                verdicts.append(TokenChoice(token, -0.1))
        answer.settle(verdicts)
    assert answer.tokens.count(word) == 4


def spelled_out(checkpoint: Checkpoint, objects: list[Object], labels: tuple[str, ...] | None) -> list[int]:
    """Tokens of an answer whose descriptions spell coordinate tokens: in ordinary tokens unless they are labels."""
    text, cut = render_answer(objects, checkpoint.style), checkpoint._vocabulary.cut
    if labels:
        return cut(text)
    pieces = text.replace("<|coord_5|>", "\0<|\0coord_5|>\0").split("\0")
    return [token for piece in pieces for token in cut(piece)]


def played(answer: GenerationState, tokens: list[int], first_coord: int) -> None:
    """Settle an answer by a model that writes `tokens`."""
    while answer.finish is None:
        done = len(answer.tokens)
        verdicts = []
        for index in [*answer.guesses, len(answer.chunk)]:
            node = answer.node if index == len(answer.chunk) else answer.chunk[index].node
            token = tokens[min(done + index, len(tokens) - 1)]  # past the end: behind a guess that fails
            k = token - first_coord
            verdicts.append(
                TokenChoice(token, -0.5, DecodedCoordinate(k, k, 1.0, -0.5, 0.9) if node.kind == "slot" else None)
            )
        answer.settle(verdicts)


@pytest.mark.parametrize("labels", [None, ("cat <|coord_5|>", "<|coord_5|>"), ("dog", "<|coord_5|>")], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_descriptions_that_spell_coordinate_tokens_are_no_slots(folders, order, labels):
    checkpoint = open_checkpoint(folders, order)
    names = [*(labels or ('"<|coord_5|>', "cat <|coord_5|>")), (labels or ("cat",))[0]]
    boxes = [[1, 2, 30, 40], [7, 8, 90, 95], [3, 4, 50, 60]]
    objects = [Object(n, 1, [0.0] * 4, [coord_token(k) for k in b]) for n, b in zip(names, boxes, strict=True)]
    answer = GenerationState(checkpoint.grammar(labels), Limits(5000, 48, 4, 9), desc_first=order == "desc_first")
    played(answer, spelled_out(checkpoint, objects, labels), checkpoint.ids.start)
    found, problems = read_answer(answer, checkpoint.text(answer), (96, 96))
    assert [(d.desc, d.bins) for d in found] == list(zip(names, boxes, strict=True)) and problems == {}


def test_legacy_coordinates_are_decoded_over_size_minus_one():
    assert decode_coords([999, 999, 0, 0], (640, 480), "norm1000_legacy") == pytest.approx([639 / 640, 479 / 480, 0, 0])
    assert decode_coords([999, 0], (640, 480), "norm1000") == [1.0, 0.0]


def test_duplicates_keep_the_best_of_the_same_description(checkpoint):
    from coordexp.records import Detection

    box = [0.1, 0.1, 0.5, 0.5]
    found = [
        Detection("cat", box, 0.3),
        Detection("cat", [0.1, 0.1, 0.5, 0.51], 0.8),
        Detection("dog", box, 0.1),
        Detection("cat", [0.6, 0.6, 0.9, 0.9], 0.2),
    ]
    kept, dropped = drop_duplicates(found, 0.9)
    assert kept == found[1:] and dropped == 1
    assert drop_duplicates(found, 0.99) == (found, 0)


def test_images_off_the_grid_are_refused(checkpoint):
    with pytest.raises(DataError, match="grid"):
        checkpoint.encode([Image.new("RGB", (100, 96))], [checkpoint.prompt()])


@pytest.mark.parametrize("part", ["norm.weight", "layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("labels", [None, ("cat", "dog")])
def test_a_model_whose_numbers_are_none_is_refused(folders, part, labels):
    """Not a number is no choice: it would come out as an answer with boxes in the corner, or without any."""
    checkpoint = open_checkpoint(folders)
    checkpoint.model.model.language_model.get_parameter(part).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not a number"):
        checkpoint.answer(images(2), [Question(None, labels)] * 2)


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="merged"):
        Checkpoint(tmp_path, PredictOptions(), PromptStyle())
