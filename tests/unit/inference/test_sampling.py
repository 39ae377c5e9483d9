"""Sampled answers: the distribution, reproducibility, the shared prompt; and answers continued past their end."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch
from inference_helpers import SIZES, images

from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions, check_options
from coordexp.inference.predictor import Predictor, Request
from coordexp.inference.prompts import Prompt
from coordexp.inference.sampling import Sampler, draw
from coordexp.inference.scores import detections_of, score_from_parts
from coordexp.runtime.errors import ConfigError

SHORT = {"max_new_tokens": 80, "geometry": ("bbox_2d",)}


@pytest.fixture(scope="module")
def sampling(predictor):
    """A predictor with three answers per prompt, two of them sampled."""
    return with_options(predictor, samples=3, sample_temperature=2.0, **SHORT)


def with_options(predictor: Predictor, **changes) -> Predictor:
    options = msgspec.structs.replace(predictor.options, **changes)
    return Predictor(predictor.model, predictor.processor, predictor.ids, options, predictor.style)


def answers(predictor: Predictor, numbers: list[int], capacity: int) -> dict[tuple[int, int], list[int]]:
    """Tokens by (image, sample)."""
    requests = [Request(n, images()[n], Prompt(), (100 + n, 0)) for n in numbers]
    finished = (pair for group in predictor.stream(requests, capacity) for pair in group)
    return {(key, answer.sample): answer.tokens for key, answer in finished}


def test_columns_are_drawn_by_inverting_the_cumulative_distribution():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (400, 7))
    logits[:, 2] = -np.inf
    uniforms = rng.random(400)
    expected = []
    for row, uniform in zip(logits, uniforms, strict=True):
        total, weights = 0.0, np.exp(row) / np.exp(row).sum()
        column = next(n for n, weight in enumerate(weights) if (total := total + weight) > uniform)
        expected.append(column)
    assert draw(torch.tensor(logits), uniforms.tolist()).tolist() == expected
    edges = draw(torch.tensor([[-torch.inf, 1.0, -torch.inf]] * 2), [0.0, 1 - 1e-16])
    assert edges.tolist() == [1, 1]


def test_random_numbers_depend_on_seed_request_sample_and_position_only():
    first, again = Sampler(17, (4, 0), 1, 1.0), Sampler(17, (4, 0), 1, 0.5)
    backwards = [again.uniform(n) for n in reversed(range(600))][::-1]
    assert [first.uniform(n) for n in range(600)] == backwards
    others = [Sampler(18, (4, 0), 1, 1.0), Sampler(17, (5, 0), 1, 1.0), Sampler(17, (4, 1), 1, 1.0)]
    others += [Sampler(17, (4, 0), 2, 1.0), Sampler(17, ("4", 0), 1, 1.0)]
    assert len({sampler.uniform(0) for sampler in [first, *others]}) == 6


def test_sampled_answers_do_not_depend_on_the_batch(sampling):
    together = answers(sampling, list(range(len(SIZES))), 15)
    assert len(together) == 3 * len(SIZES) and len({tuple(tokens) for tokens in together.values()}) > len(SIZES)
    one_at_a_time = answers(sampling, [4, 2, 0, 1, 3], 1)
    assert one_at_a_time == together


def test_the_first_answer_is_the_most_likely_one(predictor, sampling):
    greedy = with_options(predictor, **SHORT).answer(images(), [Prompt()] * len(SIZES))
    sampled = sampling.answer(images(), [Prompt()] * len(SIZES))
    assert [answer.tokens for answer in sampled] == [answer.tokens for answer in greedy]


def test_answers_to_a_prompt_share_its_forward_pass(sampling, monkeypatch):
    rows, prefill = [], sampling.decoder._prefill
    monkeypatch.setattr(
        sampling.decoder, "_prefill", lambda inputs: (rows.append(len(inputs["input_ids"])), prefill(inputs))[1]
    )
    assert len(answers(sampling, [0, 1], 6)) == 6
    assert rows == [2]


def test_continued_answers_extend_the_original_ones(predictor):
    """The lower the threshold, the more objects; what precedes the model's end stays the same."""
    counts = []
    plain = found_in(with_options(predictor, **SHORT))
    for threshold in (0.3, 1e-3, 1e-8):
        continued = found_in(with_options(predictor, continue_above=threshold, **SHORT))
        for before, after in zip(plain, continued, strict=True):
            assert [(d.desc, d.bins) for d in after[: len(before)]] == [(d.desc, d.bins) for d in before]
            products = np.cumsum([found.score_parts["next_logprob"] for found in after[len(before) :]])
            parts = [found.score_parts for found in after[len(before) :]]
            assert [part["continued_logprob"] for part in parts] == pytest.approx(products.tolist())
            assert all(math.exp(part["continued_logprob"]) >= threshold for part in parts)
        counts.append(sum(map(len, continued)))
    assert counts[0] >= sum(map(len, plain)) and all(a <= b for a, b in pairwise(counts)) and counts[0] < counts[-1]


def found_in(predictor: Predictor) -> list:
    """Detections of each image."""
    found = []
    for answer in predictor.answer(images(), [Prompt()] * len(SIZES)):
        detections, _ = detections_of(answer, predictor.text(answer), (96, 96))
        found.append(detections)
    return found


def test_the_score_of_a_continued_object_includes_its_probability():
    parts = {"desc_logprob": -0.5, "slot_logmass": -0.25, "next_logprob": -3.0}
    assert score_from_parts(parts) == pytest.approx(math.exp(-0.75))
    assert score_from_parts(parts | {"continued_logprob": -4.0}) == pytest.approx(math.exp(-4.75))


def test_continuing_needs_a_decision_of_its_own():
    for style in (PromptStyle(object_field_order="geometry_first"), PromptStyle(coordinates="integer")):
        with pytest.raises(ConfigError, match=r"predict\.continue_above"):
            check_options(PredictOptions(continue_above=0.1), style)
