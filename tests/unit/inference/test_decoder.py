"""Cached batched decoding against plain `generate`, and against a slow loop without a cache."""

from __future__ import annotations

import numpy as np
import pytest
from inference_helpers import ORDERS, SIZES, images, open_predictor, slow_answer

from coordexp.answers.parse import parse_answer
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import Grammar, Node
from coordexp.inference.options import PredictOptions
from coordexp.inference.prompts import Prompt
from coordexp.inference.scores import detections_of
from coordexp.runtime.errors import ModelError

OPEN = Prompt()


class Unconstrained(Grammar):
    """Any token until an end-of-turn token."""

    start = 0

    def __init__(self, vocabulary: Vocabulary, size: int, ends: list[int]):
        self.vocabulary = vocabulary
        allowed = np.ones(size, dtype=bool)
        self.nodes = [Node("text", dict.fromkeys(ends, 1), allowed=allowed, default=0), Node("end")]

    def node(self, index: int) -> Node:
        return self.nodes[index]


def no_limits(tokens: int) -> PredictOptions:
    """Only the number of tokens is limited."""
    return PredictOptions(
        max_new_tokens=tokens,
        max_desc_tokens=tokens + 1,
        max_desc_loops=tokens + 1,
        max_repeats=tokens + 1,
        repeat_iou=1.0,
    )


def test_without_a_grammar_tokens_equal_those_of_generate(predictor):
    inputs = predictor.encode(images(), [predictor.prompt_text()] * len(SIZES))
    new = 40
    expected = predictor.model.generate(**inputs, max_new_tokens=new, do_sample=False)[
        :, inputs["input_ids"].shape[1] :
    ]
    ends = predictor.model.generation_config.eos_token_id
    grammar = Unconstrained(predictor.vocabulary, predictor.model.config.text_config.vocab_size, ends)
    answers = [GenerationState(grammar, no_limits(new)) for _ in SIZES]
    predictor.decoder.run(inputs, answers)
    assert len({tuple(answer.tokens) for answer in answers}) > 1
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert answer.tokens == row[: len(answer.tokens)]
        assert len(answer.tokens) == new or answer.tokens[-1] in ends


@pytest.mark.parametrize(
    ("order", "answer_format"),
    [*((order, "json") for order in ORDERS), ("desc_first", "grouped"), ("desc_first", "box_tokens")],
)
def test_batched_decoding_equals_the_slow_loop(order, answer_format):
    limits = dict.fromkeys(("max_desc_tokens", "max_desc_loops", "max_repeats"), 500)
    predictor = open_predictor(order, answer_format, **limits)
    answers = predictor.answer(images(), [OPEN] * len(SIZES))
    for image, answer in zip(images(), answers, strict=True):
        tokens, logprobs = slow_answer(predictor, image, 60)
        shared = answer.tokens[:60]
        assert shared == tokens[: len(shared)] and len(shared) >= min(len(tokens), 55)
        assert np.allclose(answer.logprobs[: len(shared)], logprobs[: len(shared)], atol=1e-4)
        detections, _ = detections_of(answer, predictor.text(answer), image.size)
        assert len(detections) == len(answer.objects) or answer.finish == "length"
        for detection in detections:
            assert detection.score_parts["next_logprob"] <= 1e-6 and detection.score_parts["desc_logprob"] <= 1e-6


def test_batching_and_order_do_not_change_answers(predictor):
    together = predictor.answer(images(), [OPEN] * len(SIZES))
    backwards = predictor.answer(images()[::-1], [OPEN] * len(SIZES))[::-1]
    for n, image in enumerate(images()):
        (alone,) = predictor.answer([image], [OPEN])
        assert alone.tokens == together[n].tokens == backwards[n].tokens
        assert np.allclose(alone.logprobs, together[n].logprobs, atol=1e-4)
        assert [s.value for s in alone.slots] == pytest.approx([s.value for s in together[n].slots], abs=1e-2)


def test_forced_tokens_need_no_forward_pass_of_their_own(predictor):
    before = predictor.decoder.forward_passes
    (answer,) = predictor.answer(images(1), [OPEN])
    passes = predictor.decoder.forward_passes - before
    free = sum(lp != 0.0 for lp in answer.logprobs)
    assert passes <= free + 2 < len(answer.tokens)


@pytest.mark.parametrize("labels", [None, ("cat", "black cat", 'a "dog"')])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", [("bbox_2d",), ("poly",), ("bbox_2d", "poly")])
def test_every_answer_parses(labels, order, geometry):
    predictor = open_predictor(order, geometry=geometry, max_new_tokens=200, poly_max_points=5)
    for answer in predictor.answer(images(3), [Prompt(labels=labels)] * 3):
        text = predictor.text(answer)
        parsed = parse_answer(text)
        assert parsed.complete is (answer.finish == "stop")
        assert set(parsed.problems) <= ({"cut_off"} if answer.finish == "length" else set())
        assert all(obj.kind in geometry for obj in parsed.objects)
        if labels:
            assert all(obj.desc in labels for obj in parsed.objects)
        detections, _ = detections_of(answer, text, (96, 96))
        assert len(detections) == len(parsed.objects) > 0
        for detection in detections:
            x1, y1, x2, y2 = detection.norm
            assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 and 0 <= detection.score <= 1
            assert len(detection.spread) == len(detection.bins)
            assert (detection.poly is None) == (len(detection.bins) == 4)


def test_truncated_answers_are_prefixes_of_the_full_answer(predictor):
    (full,) = predictor.answer(images(1), [OPEN])
    for limit in (1, 5, 20, len(full.tokens) - 1):
        short = GenerationState(predictor.grammar(), PredictOptions(max_new_tokens=limit, repeat_iou=1.0))
        predictor.decoder.run(predictor.encode(images(1), [predictor.prompt_text()]), [short])
        assert short.finish == "length" and len(short.tokens) <= limit
        assert short.tokens == full.tokens[: len(short.tokens)]


@pytest.mark.parametrize("part", ["norm.weight", "layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("labels", [None, ("cat", "dog")])
def test_non_finite_outputs_are_an_error(part, labels):
    """Otherwise the answer would have boxes in the corner, or none."""
    predictor = open_predictor()
    predictor.model.model.language_model.get_parameter(part).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        predictor.answer(images(2), [Prompt(labels=labels)] * 2)
