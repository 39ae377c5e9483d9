"""The model's choice at each open position of an answer: the most likely token that the grammar allows there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from coordexp.inference.coordinates import decode_slots
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.grammar.token_grammar import Node
from coordexp.inference.options import PredictOptions
from coordexp.inference.sampling import draw
from coordexp.modeling.vocab import CoordIds
from coordexp.runtime.errors import ModelError, located


class OpenChoice(NamedTuple):
    """A position where the model chooses: at a grammar node, for the token at `position` of an answer."""

    node: Node
    state: GenerationState
    position: int


class Logits(Protocol):
    """Logits of N open positions, float32, of which only the requested ones are computed or read."""

    def columns(self, rows: list[int], columns: slice | torch.Tensor) -> torch.Tensor:
        """Logits [len(rows), columns] of some tokens."""

    def all(self, rows: list[int]) -> torch.Tensor:
        """Logits [len(rows), vocabulary] of all tokens, which the caller may change."""


class TokenChooser:
    """Chooses tokens for a batch of open positions.

    ids: coordinate token ids; None if coordinates are integers in text.
    """

    def __init__(self, ids: CoordIds | None, options: PredictOptions, device: torch.device):
        self.ids, self.options, self.device = ids, options, device
        self._masks: dict[int, tuple[Node, torch.Tensor]] = {}

    def choose(self, logits: Logits, open_choices: Sequence[OpenChoice]) -> list[TokenChoice]:
        """The most likely allowed token of each open choice, computed in one batch per kind of choice.

        ModelError if a probability is not a number.
        """
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
            tokens = self._coordinates(logits, slots, [open_choices[n] for n in slots])
            chosen |= zip(slots, tokens, strict=True)
        if texts:
            tokens = self._text(logits.all(texts), [open_choices[n] for n in texts])
            chosen |= zip(texts, tokens, strict=True)
        if few:
            indices, candidates = zip(*few, strict=True)
            tokens = self._among(logits, list(indices), candidates, [open_choices[n] for n in indices])
            chosen |= zip(indices, tokens, strict=True)
        choices = [chosen[n] for n in range(len(open_choices))]
        if any(math.isnan(choice.logprob) for choice in choices):  # `max` would return NaN as the best
            fix = "use an earlier checkpoint (training has diverged), or one in bfloat16 (float16 may overflow)"
            raise ModelError(located("the model's outputs are not finite", fix=fix))
        return choices

    def _coordinates(self, logits: Logits, rows: list[int], open_choices: list[OpenChoice]) -> list[TokenChoice]:
        """Coordinates, each within the bins that its box still allows."""
        assert self.ids is not None, "the grammar has a slot, but the model has no coordinate tokens"
        bins = logits.columns(rows, slice(self.ids.start, self.ids.end + 1))
        ranges = [choice.state.bin_range(choice.node.role) for choice in open_choices]
        low, high = torch.tensor(ranges, device=self.device).unbind(-1)
        coordinates = decode_slots(bins, low, high, self.options, partial(_pick, open_choices=open_choices))
        return [TokenChoice(self.ids.id_of(c.bin), c.logprob, c) for c in coordinates]

    def _text(self, logits: torch.Tensor, open_choices: list[OpenChoice]) -> list[TokenChoice]:
        """Description tokens from the full vocabulary, `logits` [N, vocabulary], under each node's mask."""
        masks = torch.stack([self._mask(choice.node, logits.shape[-1]) for choice in open_choices])
        for row, choice in enumerate(open_choices):
            masks[row, choice.state.forbidden(choice.node)] = False
        token = _pick(logits.masked_fill_(~masks, -torch.inf), open_choices)
        logprobs = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        return [TokenChoice(*pair) for pair in zip(token.tolist(), logprobs.tolist(), strict=True)]

    def _among(
        self,
        logits: Logits,
        rows: list[int],
        candidates: Sequence[list[int]],
        open_choices: Sequence[OpenChoice],
    ) -> list[TokenChoice]:
        """A token of each list of candidates; another object than the end if the answer continues."""
        union = sorted({token for tokens in candidates for token in tokens})
        column = {token: n for n, token in enumerate(union)}
        values = logits.columns(rows, torch.tensor(union, device=self.device)).cpu()
        choices = []
        for tokens, row, choice in zip(candidates, values, open_choices, strict=True):
            logprobs, ends = row[[column[token] for token in tokens]].log_softmax(-1), choice.node.closes
            best = int(_pick(logprobs[None], [choice]))
            ended = [n for n, token in enumerate(tokens) if token not in choice.node.extends]
            others = [n for n in ended if tokens[n] not in ends] if ends else []
            closing = [n for n, token in enumerate(tokens) if token in ends]
            ended_logprob = float(logprobs[ended].logsumexp(-1)) if 0 < len(ended) < len(tokens) else 0.0
            next_logprob = float(logprobs[others].logsumexp(-1)) - ended_logprob if others else 0.0
            continued = False
            if others and closing and (tokens[best] in ends or choice.state.is_continued):
                further, end = (max(part, key=lambda n: float(logprobs[n])) for part in (others, closing))
                continued = choice.state.continues(float(logprobs[further]), next_logprob)
                best = further if continued else end
            chosen = (tokens[best], float(logprobs[best]))
            choices.append(TokenChoice(*chosen, None, next_logprob, continued, ended_logprob))
        return choices

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
        uniforms = [sampler.uniform(c.position) for _, c, sampler in sampled]
        columns[rows] = draw(logits[rows] / temperatures[:, None], uniforms)
    return columns
