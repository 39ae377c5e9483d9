"""Batched greedy decoding under a grammar, with a cache whose rows advance at their own pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from coordexp.inference.coordinates import decode_slots
from coordexp.inference.generation_state import GenerationState, TokenChoice
from coordexp.inference.grammar.token_grammar import Node
from coordexp.inference.kv_cache import RowCache
from coordexp.inference.options import PredictOptions
from coordexp.modeling.families import family_named
from coordexp.modeling.vocab import CoordIds
from coordexp.runtime.errors import ModelError, located

Refill = Callable[[int], tuple[dict[str, torch.Tensor], Sequence[GenerationState]] | None]


class Decoder:
    """Runs answers through one model. Only the columns of the output layer that can be chosen are computed."""

    def __init__(self, model: Any, ids: CoordIds | None, options: PredictOptions):
        self.model, self.ids, self.options = model, ids, options
        self.device = model.device
        # an adapter on the head changes its answers, not its weight
        self.family = family_named(model.config.model_type)
        self.head: Any = model.get_output_embeddings()
        self._plain_head = type(self.head) is nn.Linear and not self.head._forward_hooks
        self._masks: dict[int, tuple[Node, torch.Tensor]] = {}
        self.forward_passes = 0

    def run(self, inputs: dict[str, torch.Tensor], answers: Sequence[GenerationState]) -> None:
        """Finish `answers`, one for each row of the left-padded `inputs` of the processor."""
        groups = iter([(inputs, answers)])
        for _ in self.stream(lambda _free: next(groups, None), len(answers)):
            pass

    @torch.inference_mode()
    def stream(self, refill: Refill, capacity: int) -> Iterator[list[GenerationState]]:
        """Answers as they are finished, at most `capacity` in the making at a time.

        `refill(n)` gives inputs and unfinished answers of up to `n` more rows, or None when there are no more.
        It is asked when a quarter of the places are free, so long answers do not hold up short ones.
        """
        active: list[GenerationState] = []
        cache: RowCache | None = None
        positions = torch.empty(0)
        more = True
        while more or active:
            if more and (not active or 4 * (capacity - len(active)) >= capacity):
                group = refill(capacity - len(active))
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
            staying = [row for row, answer in enumerate(active) if answer.finish is None]
            if cache is not None and len(staying) < len(active):
                yield [answer for answer in active if answer.finish is not None]
                active = [active[row] for row in staying]
                cache.keep(staying)
                positions = positions[torch.tensor(staying, dtype=torch.long, device=self.device)]

    def _admit(
        self, inputs: dict[str, torch.Tensor], answers: Sequence[GenerationState]
    ) -> tuple[RowCache, torch.Tensor]:
        """Read the prompts of new rows; their cache and rope positions."""
        cache, positions, last = self._prefill(inputs)
        open_start = [row for row, answer in enumerate(answers) if answer.finish is None and not answer.chunk]
        self._judge(last[open_start], [answers[row] for row in open_start])
        return cache, positions

    def _prefill(self, inputs: dict[str, torch.Tensor]) -> tuple[RowCache, torch.Tensor, torch.Tensor]:
        """The prompts' cache, the rope position [B] of the first token of each answer, the last state [B, 1, H]."""
        prefilled = DynamicCache(config=self.model.config.get_text_config())
        outputs = self.model.model(**inputs, past_key_values=prefilled, use_cache=True)
        self.forward_passes += 1
        mask = inputs["attention_mask"]
        lengths = mask.sum(-1)
        positions = self.family.first_positions(outputs, mask)
        return RowCache(prefilled, mask.shape[1] - lengths), positions, outputs.last_hidden_state[:, -1:]

    def _step(self, cache: RowCache, positions: torch.Tensor, answers: list[GenerationState]) -> None:
        """Feed every row's chunk at once, judge its guesses, and choose what comes next."""
        width = max(len(answer.chunk) for answer in answers)
        rows = [[fed.token for fed in answer.chunk] for answer in answers]
        tokens = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=self.device)
        mask = cache.begin(width)
        offsets = torch.arange(width, device=self.device)
        place = (positions + cache.lengths)[:, None] + offsets
        hidden = self.family.language_model(self.model)(
            inputs_embeds=self.model.get_input_embeddings()(tokens),
            position_ids=self.family.position_ids(place),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        self.forward_passes += 1
        held = self._judge(hidden, answers)
        cache.lengths += torch.tensor(held, device=self.device)

    def _judge(self, hidden: torch.Tensor, answers: list[GenerationState]) -> list[int]:
        """Settle every answer by `hidden` [B, width, H]; how many fed tokens of each row hold."""
        if not answers:
            return []
        asked: list[tuple[int, int, Node]] = []
        for row, answer in enumerate(answers):
            asked += [(row, index - 1, answer.chunk[index].node) for index in answer.guesses]  # type: ignore[misc]
            asked.append((row, len(answer.chunk) - 1, answer.node))
        vectors = hidden[[row for row, _, _ in asked], [column for _, column, _ in asked]]
        verdicts: list[TokenChoice | None] = [None] * len(asked)
        slots, texts, choices = [], [], []
        for n, (row, _, node) in enumerate(asked):
            among = None if node.kind == "slot" else answers[row].candidates(node)
            if node.kind == "slot":
                slots.append(n)
            elif among is None:
                texts.append(n)
            else:
                choices.append((n, among))
        self._judge_slots(vectors, slots, [(answers[asked[n][0]], asked[n][2]) for n in slots], verdicts)
        self._judge_texts(vectors, texts, [(answers[asked[n][0]], asked[n][2]) for n in texts], verdicts)
        self._judge_choices(vectors, choices, verdicts)
        by_row: list[list[TokenChoice]] = [[] for _ in answers]
        for (row, _, _), verdict in zip(asked, verdicts, strict=True):
            assert verdict is not None
            if math.isnan(verdict.logprob):  # `max` takes one for the best there is
                fix = "take an earlier checkpoint: training went astray; or one in bfloat16: float16 may overflow"
                raise ModelError(located("the model's outputs are not a number", fix=fix))
            by_row[row].append(verdict)
        return [answer.settle(found) for answer, found in zip(answers, by_row, strict=True)]

    def _judge_slots(self, vectors: torch.Tensor, places: list[int], where: list[tuple], verdicts: list) -> None:
        if not places:
            return
        assert self.ids is not None, "a slot in a style without coordinate tokens"
        logits = self._columns(vectors[places], slice(self.ids.start, self.ids.end + 1))
        low, high = torch.tensor([answer.bounds(node.role) for answer, node in where], device=self.device).unbind(-1)
        readings = decode_slots(logits, low, high, self.options)
        for n, reading in zip(places, readings, strict=True):
            verdicts[n] = TokenChoice(self.ids.id_of(reading.bin), reading.logprob, reading)

    def _judge_texts(self, vectors: torch.Tensor, places: list[int], where: list[tuple], verdicts: list) -> None:
        if not places:
            return
        logits = self.head(vectors[places]).float()
        masks = torch.stack([self._mask(node, logits.shape[-1]) for _, node in where])
        for row, (answer, node) in enumerate(where):
            masks[row, answer.banned(node)] = False
        best, token = logits.masked_fill_(~masks, -torch.inf).max(-1)
        logprobs = best - logits.logsumexp(-1)
        for n, chosen, logprob in zip(places, token.tolist(), logprobs.tolist(), strict=True):
            verdicts[n] = TokenChoice(chosen, logprob)

    def _judge_choices(self, vectors: torch.Tensor, places: list[tuple[int, list[int]]], verdicts: list) -> None:
        if not places:
            return
        union = sorted({token for _, among in places for token in among})
        column = {token: n for n, token in enumerate(union)}
        logits = self._columns(vectors[[n for n, _ in places]], torch.tensor(union, device=self.device)).cpu()
        for (n, among), row in zip(places, logits, strict=True):
            logprobs = row[[column[token] for token in among]].log_softmax(-1)
            best = int(logprobs.argmax())
            verdicts[n] = TokenChoice(among[best], float(logprobs[best]))

    def _columns(self, vectors: torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
        """Logits of `columns` of the output layer alone, float32."""
        if self._plain_head:
            return F.linear(vectors.float(), self.head.weight[columns].float())
        return self.head(vectors)[:, columns].float()

    def _mask(self, node: Node, size: int) -> torch.Tensor:
        if id(node) not in self._masks:
            allowed = torch.from_numpy(node.allowed)
            self._masks[id(node)] = node, F.pad(allowed, (0, size - len(allowed))).to(self.device)
        return self._masks[id(node)][1]
