"""Batched greedy decoding under a grammar, with a key/value cache whose rows advance independently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from coordexp.inference.attention import decoding_attention
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.kv_cache import RowCache
from coordexp.inference.options import PredictOptions
from coordexp.inference.token_chooser import OpenChoice, TokenChooser
from coordexp.modeling.families import family_named
from coordexp.modeling.vocab import CoordIds

Refill = Callable[[int], tuple[dict[str, torch.Tensor], Sequence[GenerationState]] | None]


class HeadLogits:
    """Logits that the output layer `head` computes from hidden vectors [N, H] when they are read (`Logits`)."""

    def __init__(self, vectors: torch.Tensor, head: Any):
        self._vectors, self._head = vectors, head
        # an adapter on the output layer changes its outputs, not its weight
        self._plain = type(head) is nn.Linear and not head._forward_hooks

    def columns(self, rows: list[int], columns: slice | torch.Tensor) -> torch.Tensor:
        """Logits of some tokens, from these columns of the output layer only."""
        if self._plain:
            return F.linear(self._vectors[rows].float(), self._head.weight[columns].float())
        return self._head(self._vectors[rows])[:, columns].float()

    def all(self, rows: list[int]) -> torch.Tensor:
        """Logits of all tokens."""
        return self._head(self._vectors[rows]).float()


class ConstrainedDecoder:
    """Generates answers with one model. Only the columns of the output layer that may be chosen are computed.

    ids: coordinate token ids; None if coordinates are integers in text.
    forward_passes: number of forward passes so far, of prompts and of steps.
    """

    def __init__(self, model: Any, ids: CoordIds | None, options: PredictOptions):
        self.model, self.ids, self.options = model, ids, options
        self.device = model.device
        self.family = family_named(model.config.model_type)
        self.head: Any = model.get_output_embeddings()
        self.chooser = TokenChooser(ids, options, self.device)
        self.forward_passes = 0

    def run(self, inputs: dict[str, torch.Tensor], states: Sequence[GenerationState]) -> None:
        """Finish `states`, one per row of the processor's left-padded `inputs`."""
        groups = iter([(inputs, states)])
        for _ in self.stream(lambda _free: next(groups, None), len(states)):
            pass

    @torch.inference_mode()
    def stream(self, refill: Refill, capacity: int) -> Iterator[list[GenerationState]]:
        """Finished answers, as soon as they are finished, with at most `capacity` in progress.

        `refill(n)` returns the inputs of more prompts and up to `n` unfinished states, or None if there are no more
        prompts. Several answers to each prompt share its forward pass: their states follow each other. It is called
        when a quarter of the rows, and at least `options.samples`, are free, so that short answers do not wait for long
        ones; if no row is in use, it may return more than `n` states.
        """
        active: list[GenerationState] = []
        cache: RowCache | None = None
        positions = torch.empty(0)
        more = True
        while more or active:
            free = capacity - len(active)
            if more and (not active or free >= max(capacity / 4, self.options.samples)):
                group = refill(free)
                more = group is not None
                if group is not None:
                    new_cache, new_positions = self._admit(*group)
                    if cache is not None and active:
                        cache.join(new_cache)
                        positions = torch.cat([positions, new_positions])
                    else:
                        cache, positions = new_cache, new_positions
                    active += group[1]
            elif cache is not None:
                self._step(cache, positions, active)
            unfinished = [row for row, state in enumerate(active) if state.finish is None]
            if cache is not None and len(unfinished) < len(active):
                yield [state for state in active if state.finish is not None]
                active = [active[row] for row in unfinished]
                cache.keep(unfinished)
                positions = positions[torch.tensor(unfinished, dtype=torch.long, device=self.device)]

    def _admit(
        self, inputs: dict[str, torch.Tensor], states: Sequence[GenerationState]
    ) -> tuple[RowCache, torch.Tensor]:
        """Process the prompts of new rows; returns their cache and the rope positions [B] of their first tokens."""
        cache, positions, last = self._prefill(inputs)
        if len(states) > len(last):
            copies = torch.arange(len(last), device=self.device).repeat_interleave(len(states) // len(last))
            cache.keep(copies.tolist())
            positions, last = positions[copies], last[copies]
        open_start = [row for row, state in enumerate(states) if state.finish is None and not state.pending]
        self._advance(last[open_start], [states[row] for row in open_start])
        return cache, positions

    def _prefill(self, inputs: dict[str, torch.Tensor]) -> tuple[RowCache, torch.Tensor, torch.Tensor]:
        """The prompts' cache, the rope position [B] of each answer's first token, the last hidden state [B, 1, H]."""
        prefilled = DynamicCache(config=self.model.config.get_text_config())
        outputs = self.model.model(**inputs, past_key_values=prefilled, use_cache=True)
        self.forward_passes += 1
        mask = inputs["attention_mask"]
        lengths = mask.sum(-1)
        positions = self.family.first_positions(self.model, mask)
        cache = RowCache(prefilled, mask.shape[1] - lengths, self.family.recurrent_states(prefilled))
        return cache, positions, outputs.last_hidden_state[:, -1:]

    def _step(self, cache: RowCache, positions: torch.Tensor, states: list[GenerationState]) -> None:
        """Feed the pending tokens of every row in one pass, verify the drafts, and choose the next tokens."""
        width = max(len(state.pending) for state in states)
        rows = [[pending.token for pending in state.pending] for state in states]
        tokens = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=self.device)
        mask = cache.begin(width)
        offsets = torch.arange(width, device=self.device)
        rope_positions = (positions + cache.lengths)[:, None] + offsets
        language_model = self.family.language_model(self.model)
        step = self.family.decoding_step(self.model, cache.states, mask)
        with decoding_attention(language_model), step as attention_mask:
            hidden = language_model(
                inputs_embeds=self.model.get_input_embeddings()(tokens),
                position_ids=self.family.position_ids(rope_positions),
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        self.forward_passes += 1
        accepted = self._advance(hidden, states)
        cache.accept(torch.tensor(accepted, device=self.device))

    def _advance(self, hidden: torch.Tensor, states: list[GenerationState]) -> list[int]:
        """Advance every state by the model's output `hidden` [B, width, H]; returns accepted tokens per row."""
        if not states:
            return []
        positions: list[tuple[int, int]] = []  # row and column of each open choice
        open_choices: list[OpenChoice] = []
        for row, state in enumerate(states):
            done = len(state.tokens)
            for index in state.drafts:
                positions.append((row, index - 1))
                open_choices.append(OpenChoice(state.pending[index].node, state, done + index))
            positions.append((row, len(state.pending) - 1))
            open_choices.append(OpenChoice(state.node, state, done + len(state.pending)))
        rows, columns = map(list, zip(*positions, strict=True))
        chosen = self.chooser.choose(HeadLogits(hidden[rows, columns], self.head), open_choices)
        by_row: list[list[TokenChoice]] = [[] for _ in states]
        for row, choice in zip(rows, chosen, strict=True):
            by_row[row].append(choice)
        return [state.advance(choices) for state, choices in zip(states, by_row, strict=True)]
