"""Batched greedy decoding under a grammar, with a key/value cache whose rows advance independently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from coordexp.inference.attention import decoding_attention
from coordexp.inference.coordinates import decode_slots
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.grammar.token_grammar import Node
from coordexp.inference.kv_cache import RowCache
from coordexp.inference.options import PredictOptions
from coordexp.inference.sampling import draw
from coordexp.modeling.families import family_named
from coordexp.modeling.vocab import CoordIds
from coordexp.runtime.errors import ModelError, located

Refill = Callable[[int], tuple[dict[str, torch.Tensor], Sequence[GenerationState]] | None]


class OpenChoice(NamedTuple):
    """A position where the model chooses: `column` of the step's tokens, in batch row `row`, at a grammar node."""

    row: int
    column: int
    node: Node
    state: GenerationState


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
        # an adapter on the output layer changes its outputs, not its weight
        self._plain_head = type(self.head) is nn.Linear and not self.head._forward_hooks
        self._masks: dict[int, tuple[Node, torch.Tensor]] = {}
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
        open_choices: list[OpenChoice] = []
        for row, state in enumerate(states):
            for index in state.drafts:
                open_choices.append(OpenChoice(row, index - 1, state.pending[index].node, state))
            open_choices.append(OpenChoice(row, len(state.pending) - 1, state.node, state))
        by_row: list[list[TokenChoice]] = [[] for _ in states]
        for (row, *_), choice in zip(open_choices, self._choose(hidden, open_choices), strict=True):
            if math.isnan(choice.logprob):  # `max` would return NaN as the best
                fix = "use an earlier checkpoint (training has diverged), or one in bfloat16 (float16 may overflow)"
                raise ModelError(located("the model's outputs are not finite", fix=fix))
            by_row[row].append(choice)
        return [state.advance(choices) for state, choices in zip(states, by_row, strict=True)]

    def _choose(self, hidden: torch.Tensor, open_choices: list[OpenChoice]) -> list[TokenChoice]:
        """The most likely allowed token of each open choice, computed in one batch per kind of choice."""
        vectors = hidden[[c.row for c in open_choices], [c.column for c in open_choices]]
        slots, texts, few = [], [], []
        for n, choice in enumerate(open_choices):
            candidates = None if choice.node.kind == "slot" else choice.state.candidates(choice.node)
            if choice.node.kind == "slot":
                slots.append(n)
            elif candidates is None:
                texts.append(n)
            else:
                few.append((n, candidates))
        chosen: dict[int, TokenChoice] = {}
        if slots:
            tokens = self._choose_coordinates(vectors[slots], [open_choices[n] for n in slots])
            chosen |= zip(slots, tokens, strict=True)
        if texts:
            tokens = self._choose_text(vectors[texts], [open_choices[n] for n in texts])
            chosen |= zip(texts, tokens, strict=True)
        if few:
            indices, candidates = zip(*few, strict=True)
            tokens = self._choose_among(vectors[list(indices)], candidates, [open_choices[n] for n in indices])
            chosen |= zip(indices, tokens, strict=True)
        return [chosen[n] for n in range(len(open_choices))]

    def _choose_coordinates(self, vectors: torch.Tensor, open_choices: list[OpenChoice]) -> list[TokenChoice]:
        """Coordinates for `vectors` [N, H], each within the bins that its box still allows."""
        assert self.ids is not None, "the grammar has a slot, but the model has no coordinate tokens"
        logits = self._columns(vectors, slice(self.ids.start, self.ids.end + 1))
        ranges = [choice.state.bin_range(choice.node.role) for choice in open_choices]
        low, high = torch.tensor(ranges, device=self.device).unbind(-1)
        coordinates = decode_slots(logits, low, high, self.options, partial(_pick, open_choices=open_choices))
        return [TokenChoice(self.ids.id_of(c.bin), c.logprob, c) for c in coordinates]

    def _choose_text(self, vectors: torch.Tensor, open_choices: list[OpenChoice]) -> list[TokenChoice]:
        """Description tokens for `vectors` [N, H], from the full vocabulary under each node's mask."""
        logits = self.head(vectors).float()
        masks = torch.stack([self._mask(choice.node, logits.shape[-1]) for choice in open_choices])
        for row, choice in enumerate(open_choices):
            masks[row, choice.state.forbidden(choice.node)] = False
        token = _pick(logits.masked_fill_(~masks, -torch.inf), open_choices)
        logprobs = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        return [TokenChoice(*pair) for pair in zip(token.tolist(), logprobs.tolist(), strict=True)]

    def _choose_among(
        self, vectors: torch.Tensor, candidates: Sequence[list[int]], open_choices: Sequence[OpenChoice]
    ) -> list[TokenChoice]:
        """A token of each list of candidates, for `vectors` [N, H]; another object than the end if it continues."""
        union = sorted({token for tokens in candidates for token in tokens})
        column = {token: n for n, token in enumerate(union)}
        logits = self._columns(vectors, torch.tensor(union, device=self.device)).cpu()
        choices = []
        for tokens, row, choice in zip(candidates, logits, open_choices, strict=True):
            logprobs, ends = row[[column[token] for token in tokens]].log_softmax(-1), choice.node.closes
            best = int(_pick(logprobs[None], [choice]))
            others = [n for n, token in enumerate(tokens) if token not in ends] if ends else []
            next_logprob = float(logprobs[others].logsumexp(-1)) if others else 0.0
            continued = False
            if others and tokens[best] in ends:
                further = max(others, key=lambda n: float(logprobs[n]))
                continued = choice.state.continues(float(logprobs[further]), next_logprob)
                best = further if continued else best
            choices.append(TokenChoice(tokens[best], float(logprobs[best]), None, next_logprob, continued))
        return choices

    def _columns(self, vectors: torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
        """Logits of `columns` of the output layer only, float32."""
        if self._plain_head:
            return F.linear(vectors.float(), self.head.weight[columns].float())
        return self.head(vectors)[:, columns].float()

    def _mask(self, node: Node, size: int) -> torch.Tensor:
        """Allowed tokens of a `text` node, bool [size], on the model's device."""
        if id(node) not in self._masks:
            allowed = torch.from_numpy(node.allowed)
            self._masks[id(node)] = node, F.pad(allowed, (0, size - len(allowed))).to(self.device)
        return self._masks[id(node)][1]


def _pick(logits: torch.Tensor, open_choices: Sequence[OpenChoice]) -> torch.Tensor:
    """The most likely column of each row of `logits` [N, V], or a random one for a sampled answer; int64 [N]."""
    columns = logits.argmax(-1)
    sampled = [(n, c, c.state.sampler) for n, c in enumerate(open_choices) if c.state.sampler is not None]
    if sampled:
        rows = [n for n, *_ in sampled]
        temperatures = logits.new_tensor([sampler.temperature for *_, sampler in sampled])
        uniforms = [sampler.uniform(len(c.state.tokens) + c.column + 1) for _, c, sampler in sampled]
        columns[rows] = draw(logits[rows] / temperatures[:, None], uniforms)
    return columns
