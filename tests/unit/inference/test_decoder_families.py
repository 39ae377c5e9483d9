"""Decoding with every model family: the same tokens and log probabilities as `generate` of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from inference_helpers import SIZES, generated_answer, images

from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor, Request
from coordexp.inference.prompts import Prompt
from coordexp.modeling import tiny, vocab

SMALL = {"hidden": 48, "layers": 4, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "vocab_size": 600}
SMALL |= {"vision_hidden": 48, "vision_layers": 1, "vision_mlp": 96, "deepstack": (0,), "expert_mlp": 32}
# Random weights that write answers of different lengths.
SEEDS = {
    "qwen3_vl": 3,
    "qwen3_vl_moe": 4,
    "qwen3_5": 3,
    "qwen3_5_moe": 8,
}


@pytest.fixture(scope="module", params=SEEDS)
def untaught(request, tmp_path_factory) -> Predictor:
    """Random weights: answers differ between images, and many drafts are rejected."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.build(folder / "base", SEEDS[request.param], family=request.param, embed_std=0.5, init_std=0.5, **SMALL)
    vocab.expand(folder / "base", folder / "expanded")
    options = PredictOptions(max_new_tokens=60, max_desc_tokens=99, max_desc_loops=99, max_repeats=99)
    return Predictor.from_checkpoint(folder / "expanded", options, PromptStyle())


def test_answers_are_those_of_generate_under_the_same_constraint(untaught):
    answers = untaught.answer(images(), [Prompt()] * len(SIZES))
    assert len({tuple(answer.tokens) for answer in answers}) > 1
    for image, answer in zip(images(), answers, strict=True):
        tokens, logprobs = generated_answer(untaught, image, 60)
        assert answer.tokens == tokens
        assert np.allclose(answer.logprobs, logprobs, atol=1e-4)


def test_batching_does_not_change_answers(untaught):
    """Rows that join and leave the batch, and accept different numbers of drafts, do not affect each other."""
    requests = [Request(n, image, Prompt()) for n, image in enumerate(images())]
    together = dict(pair for finished in untaught.stream(requests, 3) for pair in finished)
    for n, image in enumerate(images()):
        (alone,) = untaught.answer([image], [Prompt()])
        assert alone.tokens == together[n].tokens
        assert np.allclose(alone.logprobs, together[n].logprobs, atol=1e-4)
