"""Attention of decoding steps against the attention of transformers."""

import pytest
import torch
from inference_helpers import images, taught_checkpoint
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from coordexp.answers.render import PromptStyle
from coordexp.inference import attention, kv_cache
from coordexp.inference.attention import grouped_attention
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("width", [1, 4])
def test_grouped_heads_equal_repeated_keys_and_values(heads, kv_heads, width):
    generator = torch.Generator().manual_seed(heads + width)
    query = torch.randn(2, heads, width, 16, generator=generator)
    key, value = (torch.randn(2, kv_heads, 70, 16, generator=generator) for _ in range(2))
    mask = torch.rand(2, 1, width, 70, generator=generator) < 0.6
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // kv_heads, False
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    output, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    assert output.shape == expected.shape == (2, width, heads, 16)
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("columns", [1, 64])
def test_answers_equal_those_with_the_attention_of_transformers(monkeypatch, columns):
    """The taught model has two query heads per key head."""
    style = PromptStyle()
    predictor = Predictor.from_checkpoint(taught_checkpoint(style), PredictOptions(max_new_tokens=120), style, "cpu")
    prompts = [Prompt()] * len(images())
    with monkeypatch.context() as patch:
        patch.setattr(attention, "NAME", "sdpa")
        expected = predictor.answer(images(), prompts)
    monkeypatch.setattr(kv_cache, "columns_multiple", lambda device: columns)
    answers = predictor.answer(images(), prompts)
    for answer, other in zip(answers, expected, strict=True):
        assert answer.tokens == other.tokens
        assert answer.logprobs == pytest.approx(other.logprobs, abs=2e-6)
    assert predictor.model.model.language_model.config._attn_implementation == "sdpa"
