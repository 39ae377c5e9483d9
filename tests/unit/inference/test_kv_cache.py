"""The row cache against naive lists of each row's tokens, and in a model against transformers' own cache."""

from __future__ import annotations

import pytest
import torch
from inference_helpers import images
from transformers import DynamicCache

from coordexp.inference.kv_cache import RowCache
from coordexp.runtime import tuning

LAYERS, HEADS, DIM = 2, 3, 4


class NaiveRows:
    """Keys of every row as a plain list of its tokens, the prompt first."""

    def __init__(self, prompts: list[torch.Tensor]):
        self.rows = [list(prompt) for prompt in prompts]

    def append(self, row: int, tokens: torch.Tensor) -> None:
        self.rows[row] += list(tokens)


def prefilled(lengths: list[int], seed: int) -> tuple[RowCache, NaiveRows]:
    """A cache of left-padded prompts; keys and values are random, values the negated keys, layers multiples."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    keys = torch.randn(len(lengths), width, HEADS, DIM, generator=generator)
    cache = DynamicCache()
    for layer in range(LAYERS):
        data = (keys * (layer + 1)).transpose(1, 2)
        cache.update(data, -data, layer)
    padding = torch.tensor([width - length for length in lengths])
    prompts = [keys[row, width - length :] for row, length in enumerate(lengths)]
    return RowCache(cache, padding), NaiveRows(prompts)


def step(cache: RowCache, naive: NaiveRows, accepted: list[int], seed: int) -> None:
    """Feed `max(accepted) + 1` tokens per row, accept some of them, and check what attention sees of each row."""
    width = max(accepted) + 1
    keys = torch.randn(len(accepted), width, HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    mask = cache.begin(width)
    for layer in range(LAYERS):
        data = (keys * (layer + 1)).transpose(1, 2)
        stored_keys, stored_values = cache.update(data, -data, layer)
        assert stored_keys.shape[2] == mask.shape[-1]
        for row in range(len(accepted)):
            for column in range(width):
                visible = mask[row, 0, column]
                expected = torch.stack([*naive.rows[row], *keys[row, : column + 1]]) * (layer + 1)
                assert torch.equal(stored_keys[row][:, visible].transpose(0, 1), expected)
                assert torch.equal(stored_values[row][:, visible].transpose(0, 1), -expected)
    for row, count in enumerate(accepted):
        naive.append(row, keys[row, :count])
    cache.accept(torch.tensor(accepted))


def test_rows_grow_at_their_own_pace_and_rejected_tokens_are_overwritten():
    cache, naive = prefilled([5, 2, 7], seed=0)
    for n, accepted in enumerate([[1, 3, 2], [4, 1, 1], [1, 1, 5], [2, 2, 2]]):
        step(cache, naive, accepted, seed=n)
    assert cache.lengths.tolist() == [8, 7, 10]


def test_buffers_widen_when_they_are_full():
    cache, naive = prefilled([3, 1], seed=0)
    for n in range(3):
        step(cache, naive, [tuning.CACHE_COLUMNS // 2, 1], seed=n)
    assert cache.keys[0].shape[2] > tuning.CACHE_COLUMNS


@pytest.mark.parametrize("kept", [[0], [2], [0, 2], [2, 1]])
def test_kept_rows_continue_as_before(kept):
    cache, naive = prefilled([5, 2, 7], seed=0)
    step(cache, naive, [1, 3, 2], seed=1)
    cache.keep(kept)
    naive.rows = [naive.rows[row] for row in kept]
    step(cache, naive, [2] * len(kept), seed=2)


@pytest.mark.parametrize("lengths", [[4], [12, 3], [1, 1, 1]])
def test_joined_rows_continue_as_before(lengths):
    cache, naive = prefilled([5, 2], seed=0)
    step(cache, naive, [1, 3], seed=1)
    other, other_naive = prefilled(lengths, seed=2)
    cache.join(other)
    naive.rows += other_naive.rows
    step(cache, naive, [3, 1] + [2] * len(lengths), seed=3)
    step(cache, naive, [1] * len(naive.rows), seed=4)


def test_hidden_states_equal_those_of_a_dynamic_cache(predictor):
    """Rows that rejected tokens in between get the states of a cache that never saw these tokens."""
    model = predictor.model.model
    inputs = predictor.encode(images(3), [predictor.prompt_text()] * 3)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(300, (3, 6), generator=generator)
    wrong = torch.randint(300, (3, 3), generator=generator)
    with torch.inference_mode():
        cache, positions, _ = predictor.decoder._prefill(inputs)

        def feed(batch: torch.Tensor, accepted: list[int]) -> torch.Tensor:
            mask = cache.begin(batch.shape[1])
            rope = (positions + cache.lengths)[:, None] + torch.arange(batch.shape[1])
            hidden = model.language_model(
                inputs_embeds=model.language_model.embed_tokens(batch),
                position_ids=rope.expand(3, -1, -1),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            cache.accept(torch.tensor(accepted))
            return hidden

        first = feed(torch.cat([tokens[:, :2], wrong], 1), [1, 2, 2])
        feed(wrong, [0, 0, 0])
        rest = [tokens[0, 1:5], tokens[1, 2:6], tokens[2, 2:6]]
        second = feed(torch.stack(rest), [4, 4, 4])
        for row, (start, end) in enumerate([(1, 5), (2, 6), (2, 6)]):
            alone = predictor.encode(images(3)[row : row + 1], [predictor.prompt_text()])
            plain = DynamicCache(config=predictor.model.config.get_text_config())
            prompt = model(**alone, past_key_values=plain, use_cache=True)
            length = alone["input_ids"].shape[1]
            rope = length + int(prompt.rope_deltas) + torch.arange(end)
            expected = model.language_model(
                inputs_embeds=model.language_model.embed_tokens(tokens[row : row + 1, :end]),
                position_ids=rope.expand(3, 1, -1),
                past_key_values=plain,
                use_cache=True,
            ).last_hidden_state[0]
            assert torch.allclose(first[row, :start], expected[:start], atol=1e-4)
            assert torch.allclose(second[row], expected[start:end], atol=1e-4)
