"""The probability that another object follows: against one forward pass and all texts that may follow an object."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import msgspec
import pytest
import torch
from inference_helpers import images, open_predictor

from coordexp.answers.formats import format_of
from coordexp.answers.formats.base import Item
from coordexp.answers.parse import parse_answer
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammar.automaton import STARTS
from coordexp.inference.predictor import Predictor

LABELS = ("cat", "black cat", "dog")


class Expected(NamedTuple):
    """Log probabilities of an object: that it follows rather than the end, and of its description if it follows."""

    follows: float
    description: float


def sampled(predictor: Predictor, labels: tuple[str, ...] | None, count: int) -> list[GenerationState]:
    """Random answers about one image, in which all kinds of choices occur."""
    states = [predictor.grammars.new_state(labels, sample, (0,)) for sample in range(1, count + 1)]
    predictor.decoder.run(predictor.encode(images(1) * count, [predictor.prompt_text()] * count), states)
    return states


def logits_of(predictor: Predictor, tokens: list[int]) -> torch.Tensor:
    """Logits [N + 1, vocabulary] at the position of each token of an answer, and after it."""
    inputs = dict(predictor.encode(images(1), [predictor.prompt_text()]))
    length, generated = inputs["input_ids"].shape[1], torch.tensor([tokens])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], generated], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(generated)], 1)
    with torch.inference_mode():
        return predictor.model(**inputs, use_cache=False).logits[0, length - 1 :].double()


def reference(predictor: Predictor, answer: GenerationState, labels: tuple[str, ...] | None) -> list[Expected]:
    """Of each complete object of an answer. The text before an object is compared with that of each other object."""
    answer_format, tokenize = format_of(predictor.style), predictor.vocabulary.tokenize
    first, logits = predictor.ids.start, logits_of(predictor, answer.tokens)
    slots = [n for n, token in enumerate(answer.tokens) if first <= token < first + 1000]
    found, previous, begin, slot = [], None, 0, 0
    for obj in parse_answer(predictor.text(answer), "token", predictor.style.answer_format).objects:
        item = Item(answer_format.escape(obj.desc), obj.kind)
        descriptions = {*(labels or STARTS), item.desc, *([previous.desc] if previous else [])}
        kinds = predictor.options.geometry
        others = [Item(desc, kind) for desc in descriptions for kind in kinds]
        before = {previous, previous and Item("", previous.kind)}  # a description may be repeated instead of shared
        objects = [tokenize(answer_format.between(given, other)) for given in before for other in others]
        end = tokenize(answer_format.between(previous, None) + (answer_format.end_token or ""))
        follows = description = 0.0
        for position in range(begin, slots[slot]):
            read, values = answer.tokens[begin:position], logits[position]
            allowed = [tokens for tokens in objects if tokens[: len(read)] == read]
            following = sorted({tokens[len(read)] for tokens in allowed})
            another = float(values[following].logsumexp(0)) if following else 0.0
            if end[: len(read)] == read and end[len(read)] not in following:
                follows += another - float(values[[*following, end[len(read)]]].logsumexp(0))
            description += float(values[answer.tokens[position]]) - another
        found.append(Expected(follows, description))
        slot += len(obj.bins)
        previous, begin = item, slots[slot - 1] + 1
    return found


@pytest.mark.parametrize("answer_format", ["json", "grouped", "box_tokens"])
def test_the_probability_of_another_object_does_not_depend_on_how_a_polygon_ends(answer_format):
    predictor = open_predictor(answer_format=answer_format)
    seen = set()
    for geometry in (("bbox_2d",), ("bbox_2d", "poly")):
        limits = {"max_new_tokens": 120, "max_desc_tokens": 3, "poly_max_points": 5, "max_repeats": 500}
        options = msgspec.structs.replace(predictor.options, geometry=geometry, sample_temperature=3.0, **limits)
        drawn = Predictor(predictor.model, predictor.processor, predictor.ids, options, predictor.style)
        for labels in (LABELS, None):
            for answer in sampled(drawn, labels, 8):
                wanted = reference(drawn, answer, labels)
                objects = answer.objects[: len(wanted)]
                assert [o.next_logprob for o in objects] == pytest.approx([w.follows for w in wanted], abs=1e-4)
                if labels and format_of(drawn.style).shares_descriptions:
                    found = [o.desc_logprob for o in objects]
                    assert found == pytest.approx([w.description for w in wanted], abs=1e-4)
                parsed = parse_answer(drawn.text(answer), "token", answer_format).objects
                seen |= {(a.kind, b.kind) for a, b in itertools.pairwise(parsed)}
    assert len(seen) == 4
