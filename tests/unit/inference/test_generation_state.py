"""One answer driven by scripted choices: repetitions, loops, and what a description may spell."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from inference_helpers import ORDERS, open_predictor, run_with, tokens_of
from modeling_helpers import qwen3_tokenizer

from coordexp.answers.render import PromptStyle
from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.grammar.token_grammar import compile_grammar
from coordexp.inference.options import PredictOptions
from coordexp.inference.scores import detections_of
from coordexp.records import Object, coord_token

OPTIONS = PredictOptions(max_new_tokens=5000, max_repeats=9, repeat_iou=1.0)


def scripted(answer: GenerationState, bins: tuple[int, ...] = (1, 2, 30, 40)) -> None:
    """Simulate a model that always generates the same object and never ends the answer if it has a choice."""
    while answer.finish is None:
        if not answer.pending:
            nodes = [answer.node]
        else:
            nodes = [answer.pending[index].node for index in answer.drafts] + [answer.node]
        choices = []
        for node in nodes:
            if node.kind == "slot":
                low, high = answer.bin_range(node.role)
                k = bins[len(choices) + len(answer.slots) + sum(f.coordinate is not None for f in answer.pending) & 3]
                assert low <= k <= high
                choices.append(TokenChoice(5000 + k, -0.5, DecodedCoordinate(k, k, 1.0, -0.5, 0.9)))
            else:
                free = answer.candidates(node) or np.flatnonzero(node.allowed).tolist()
                among = sorted(set(free) - set(answer.forbidden(node)))
                preferred = [t for t in among if t not in node.closes]
                ends = [t for t in preferred if t in node.finish]
                choices.append(TokenChoice((ends or preferred or among)[0], -0.1))
        answer.advance(choices)


def test_repeated_objects_close_the_answer(predictor):
    for repeats in (2, 3):
        answer = GenerationState(predictor.grammar(("cat",)), msgspec.structs.replace(OPTIONS, max_repeats=repeats))
        scripted(answer)
        assert answer.finish == "stop" and answer.problems["repetition_closed"] == 1
        assert len(answer.objects) == repeats


def test_repeated_objects_close_the_answer_if_quote_and_end_are_one_token():
    tokenizer = qwen3_tokenizer()
    grammar = compile_grammar(tokenizer, PromptStyle(object_field_order="geometry_first"))
    answer = GenerationState(grammar, msgspec.structs.replace(OPTIONS, max_repeats=3), desc_first=False)
    scripted(answer)
    assert answer.finish == "stop" and answer.problems["repetition_closed"] == 1 and len(answer.objects) == 3


@pytest.mark.parametrize("answer_format", ["grouped", "box_tokens"])
def test_sharing_a_description_counts_as_its_choice(answer_format):
    """The score of a further box contains the choice of its description, but not that of going on."""
    grammar = compile_grammar(qwen3_tokenizer(), PromptStyle(answer_format=answer_format))
    answer, spelled = GenerationState(grammar, OPTIONS), grammar.vocabulary.bytes_of
    opening, further, other, end = {
        "grouped": (b'{"', b",", b';"', b"}"),
        "box_tokens": (b"<|object_ref_start|>", b"<|box_start|>", b"<|object_ref_start|>", b"<|im_end|>"),
    }[answer_format]
    after_objects = iter([further, other, end])
    while answer.finish is None:
        nodes = [answer.pending[index].node for index in answer.drafts] + [answer.node]
        choices = []
        for node in nodes:
            if node.kind == "slot":
                low, _ = answer.bin_range(node.role)
                choices.append(TokenChoice(5000 + low, -0.5, DecodedCoordinate(low, low, 1.0, -0.5, 0.9)))
            elif node.kind == "text":
                began = any(spelled(token.token) == b"cat" for token in answer.pending)
                tokens = (b'":', b"<|object_ref_end|>") if began else (b"cat",)
                choices.append(
                    TokenChoice(next(t for t in np.flatnonzero(node.allowed) if spelled(t) in tokens), -0.25)
                )
            else:
                chosen, logprobs = (next(after_objects), (-0.75, -0.125)) if answer.slots else (opening, (-0.0625,) * 2)
                token = next(t for t in node.follow if spelled(t) == chosen)
                choices.append(TokenChoice(token, logprobs[0], next_logprob=logprobs[1]))
        answer.advance(choices)
    assert answer.finish == "stop" and spelled(answer.tokens[-1]) == end
    first, second, third = answer.objects
    assert (first.next_logprob, second.next_logprob, third.next_logprob) == (-0.0625, -0.125, -0.125)
    assert (first.desc_logprob, second.desc_logprob, third.desc_logprob) == (-0.5, -0.625, -0.625 - 0.5)
    assert second.desc_tokens == 1


def test_a_looping_description_is_closed(predictor):
    answer = GenerationState(predictor.grammar(), msgspec.structs.replace(OPTIONS, max_new_tokens=400, max_repeats=2))
    word = predictor.vocabulary.tokenize("cat")[0]
    while answer.finish is None and not answer.slots:
        nodes = [answer.pending[index].node for index in answer.drafts] + [answer.node]
        choices = []
        for node in nodes:
            if node.kind == "slot":
                choices.append(TokenChoice(5000, -0.5, DecodedCoordinate(0, 0.0, 1.0, -0.5, 0.9)))
            else:
                among = answer.candidates(node)
                token = word if among is None else next(t for t in among if t not in node.closes)
                choices.append(TokenChoice(token, -0.1))
        answer.advance(choices)
    assert answer.tokens.count(word) == 4


@pytest.mark.parametrize("labels", [None, ("cat <|coord_5|>", "<|coord_5|>"), ("dog", "<|coord_5|>")], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_coordinate_tokens_in_descriptions_are_not_slots(order, labels):
    predictor = open_predictor(order)
    names = [*(labels or ('"<|coord_5|>', "cat <|coord_5|>")), (labels or ("cat",))[0]]
    boxes = [[1, 2, 30, 40], [7, 8, 90, 95], [3, 4, 50, 60]]
    objects = [Object(n, 1, [0.0] * 4, [coord_token(k) for k in b]) for n, b in zip(names, boxes, strict=True)]
    answer = GenerationState(predictor.grammar(labels), OPTIONS, desc_first=order == "desc_first")
    run_with(answer, tokens_of(predictor, objects, labels), predictor.ids.start)
    found, problems = detections_of(answer, predictor.text(answer), (96, 96))
    assert [(d.desc, d.bins) for d in found] == list(zip(names, boxes, strict=True)) and problems == {}
