"""Inputs prepared ahead: order, limits, errors, and equality with the processor's own batches."""

import threading

import pytest
import torch
from inference_helpers import images, taught_checkpoint

from coordexp.answers.render import PromptStyle
from coordexp.inference.encoding import encoded_ahead, left_padded
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor, Request
from coordexp.inference.prompts import Prompt


@pytest.mark.parametrize("workers", [0, 3])
def test_items_keep_their_order(workers):
    encoded = encoded_ahead(range(20), lambda n: {"n": torch.tensor(n)}, 4, workers)
    assert [(item, int(inputs["n"])) for item, inputs in encoded] == [(n, n) for n in range(20)]


def test_items_are_read_only_as_far_ahead_as_allowed():
    read = []
    items = (read.append(n) or n for n in range(20))
    encoded = encoded_ahead(items, lambda n: {}, 4, 2)
    next(encoded)
    assert read == [0, 1, 2, 3]
    next(encoded)
    assert read == [0, 1, 2, 3, 4]


def test_an_error_is_raised_at_its_item_and_ends_the_threads():
    def encode(n):
        if n == 2:
            raise ValueError("image 2")
        return {}

    encoded = encoded_ahead(range(20), encode, 4, 2)
    assert [next(encoded)[0], next(encoded)[0]] == [0, 1]
    with pytest.raises(ValueError, match="image 2"):
        next(encoded)
    for thread in threading.enumerate():
        if thread.name.startswith("encode"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def predictor():
    style = PromptStyle()
    return Predictor.from_checkpoint(taught_checkpoint(style), PredictOptions(max_new_tokens=60), style, "cpu")


def test_a_batch_equals_that_of_the_processor(predictor):
    prompts = [None, ["cat", "black cat"], None, ["dog"], None]
    texts = [predictor.prompt_text(names) for names in prompts]
    single = [predictor.encode([image], [text]) for image, text in zip(images(), texts, strict=True)]
    batch, expected = left_padded(single, predictor.processor.tokenizer.pad_token_id), predictor.encode(images(), texts)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_answers_do_not_depend_on_the_threads(predictor, monkeypatch):
    requests = [Request(n, image.copy, Prompt()) for n, image in enumerate(images())]
    expected = dict(pair for finished in predictor.stream(requests, 2) for pair in finished)
    monkeypatch.setattr(predictor, "_workers", lambda: 3)
    answers = dict(pair for finished in predictor.stream(requests, 2) for pair in finished)
    assert {n: state.tokens for n, state in answers.items()} == {n: state.tokens for n, state in expected.items()}
