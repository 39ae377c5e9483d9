"""Answers generated one token per step, in the batch of an engine, against the loop of our decoder."""

from __future__ import annotations

import hashlib
import math
import random
from typing import NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

from coordexp.answers.render import PromptStyle
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammars import Grammars
from coordexp.inference.options import PredictOptions
from coordexp.inference.token_chooser import OpenChoice, TokenChooser
from coordexp.inference.token_stepper import TokenStepper
from coordexp.inference.vllm_engine.answers import AnswersInBatch, MatrixLogits
from coordexp.modeling.vocab import CoordIds, verified_ids

LABELS = ("cat", "black cat", "bun (food)")
LIMITS = {"max_new_tokens": 130, "max_desc_tokens": 5, "max_desc_loops": 2, "max_repeats": 2, "repeat_iou": 0.3}


@pytest.fixture(scope="module")
def checkpoint(tiny_model) -> Checkpoint:
    return Checkpoint(AutoTokenizer.from_pretrained(tiny_model), verified_ids(tiny_model))


class Checkpoint(NamedTuple):
    """The parts of a checkpoint that decide what its tokens mean."""

    tokenizer: object
    ids: CoordIds


def engine(
    checkpoint: Checkpoint, style: dict[str, str] | None = None, **given: object
) -> tuple[Grammars, TokenChooser]:
    options = PredictOptions(**LIMITS | given)
    grammars = Grammars(checkpoint.tokenizer, options, PromptStyle(**style or {}))
    return grammars, TokenChooser(checkpoint.ids, options, torch.device("cpu"))


def end(checkpoint: Checkpoint) -> int:
    return checkpoint.tokenizer.eos_token_id


def logits_after(seed: int, tokens: list[int], size: int) -> torch.Tensor:
    """What a simulated model outputs: random, but determined by the last tokens, so that answers repeat themselves."""
    key = hashlib.sha256(f"{seed} {tokens[-3:]} {len(tokens) // 90}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    return 3 * torch.randn(size, generator=generator)


def decoded(state: GenerationState, chooser: TokenChooser, seed: int, size: int) -> GenerationState:
    """The answer by the rule of `ConstrainedDecoder`: all drafts of a step are verified together."""
    while state.finish is None:
        pending = [token.token for token in state.pending]
        nodes = [(index, state.pending[index].node) for index in state.drafts] + [(len(pending), state.node)]
        rows = [logits_after(seed, state.tokens + pending[:index], size) for index, _ in nodes]
        open_choices = [OpenChoice(node, state, len(state.tokens) + index) for index, node in nodes]
        state.advance(chooser.choose(MatrixLogits(torch.stack(rows), list(range(len(rows)))), open_choices))
    return state


class SimulatedEngine:
    """Runs requests in rows that change places, discards tokens and preempts requests at random."""

    def __init__(self, batch: AnswersInBatch, size: int, seed: int):
        self.batch, self.size, self.random = batch, size, random.Random(seed)

    def run(self, requests: list[tuple[int, tuple[str, ...] | None]]) -> dict[int, GenerationState]:
        params = {seed: object() for seed, _ in requests}
        outputs: dict[int, list[int]] = {seed: [] for seed, _ in requests}
        active: dict[int, object] = {}
        done: dict[int, GenerationState] = {}
        while len(done) < len(requests):
            for seed, labels in requests:
                if seed not in active and seed not in done and self.random.random() < 0.5:
                    active[seed] = self.batch.enter(params[seed], outputs[seed], labels, False, *sample(seed))
            order = self.random.sample(list(active), len(active))
            rows = {row: active[seed] for row, seed in enumerate(order)}
            logits = torch.stack([logits_after(seed, outputs[seed], self.size) for seed in order] or [torch.zeros(0)])
            self.batch.apply(logits, rows)
            for row, seed in enumerate(order):
                token = int(logits[row].argmax())
                assert logits[row].isfinite().sum() == 1
                if self.random.random() < 0.1:
                    continue  # the prompt was not complete: the engine discards the token
                if token == self.batch.end_token:
                    self.batch.leave(active[seed])
                    done[seed] = active.pop(seed).stepper.finish()
                    continue
                outputs[seed].append(token)
                if self.random.random() < 0.05:  # preempted
                    self.batch.leave(active.pop(seed))
                    outputs[seed] = list(outputs[seed])
        return done


def sample(seed: int) -> tuple[int, tuple[int]]:
    """Every second answer is sampled."""
    return seed % 2, (seed,)


def facts(state: GenerationState) -> dict[str, object]:
    names = ("tokens", "logprobs", "slots", "objects", "problems", "finish")
    return {name: getattr(state, name) for name in names}


POLYGONS = {"geometry": ("bbox_2d", "poly")}


@pytest.mark.parametrize(
    ("style", "options"),
    [
        ({"object_field_order": "desc_first"}, POLYGONS),
        ({"object_field_order": "geometry_first"}, POLYGONS),
        ({}, {"continue_above": 0.3}),
        ({"answer_format": "grouped"}, {}),
        ({"answer_format": "box_tokens"}, {}),
    ],
    ids=["description first", "geometry first", "continued", "grouped", "box tokens"],
)
def test_answers_in_a_batch_equal_those_of_the_decoder_in_any_row_and_after_preemption(checkpoint, style, options):
    grammars, chooser = engine(checkpoint, style, **options)
    size = grammars.vocabulary.size + 7  # padded columns
    requests = [(seed, LABELS if seed % 3 == 0 else None) for seed in range(24)]
    aux = sorted(grammars.vocabulary.spelling)[:3]
    found = SimulatedEngine(AnswersInBatch(grammars, chooser, end(checkpoint), aux), size, 1).run(requests)
    expected = {
        seed: decoded(grammars.new_state(labels, *sample(seed)), chooser, seed, size) for seed, labels in requests
    }
    for seed, labels in requests:
        got, wanted = facts(found[seed]), facts(expected[seed])
        assert got["tokens"] == wanted["tokens"]
        assert got["logprobs"] == pytest.approx(wanted["logprobs"], abs=1e-5)
        assert [s.value for s in got["slots"]] == pytest.approx([s.value for s in wanted["slots"]], abs=1e-3)
        assert (got["problems"], got["finish"]) == (wanted["problems"], wanted["finish"])
        if labels and got["finish"] == "stop":
            text = checkpoint.tokenizer.decode(got["tokens"])
            assert {obj.desc for obj in grammars.grammar().format.parse(text).objects} <= set(LABELS)
    problems = sum((state.problems for state in found.values()), start=type(found[0].problems)())
    finishes = {state.finish for state in found.values()}
    assert "stop" in finishes and sum(len(state.objects) for state in found.values()) > 5
    if options == POLYGONS:
        assert "length" in finishes and problems["repetition_closed"] and problems["description_closed"]


def test_a_row_reports_the_coordinate_of_a_slot_beside_its_log_probability(checkpoint):
    from coordexp.inference.coordinates import coordinate_of

    grammars, chooser = engine(checkpoint)
    aux = sorted(grammars.vocabulary.spelling)[:3]
    batch, output, size = AnswersInBatch(grammars, chooser, end(checkpoint), aux), [], grammars.vocabulary.size
    answer = batch.enter(object(), output, None, with_coordinates=True)
    read = []
    while True:
        logits = logits_after(1, output, size)[None]
        batch.apply(logits, {0: answer})
        token = int(logits[0].argmax())
        if token == batch.end_token:
            break
        output.append(token)
        if token in range(checkpoint.ids.start, checkpoint.ids.end + 1):
            reported = logits[0][logits[0].isfinite()].tolist()
            read.append(coordinate_of(token - checkpoint.ids.start, float(logits[0, token]), reported))
        else:
            assert logits[0].isfinite().sum() == 1
    slots = answer.stepper.state.slots
    assert len(read) == len(slots) > 0 and [c.bin for c in read] == [s.bin for s in slots]
    for name, tolerance in (("value", 1e-3), ("spread", 1e-3), ("logprob", 1e-5), ("mass", 1e-5)):
        expected = [getattr(slot, name) for slot in slots]
        assert [getattr(c, name) for c in read] == pytest.approx(expected, abs=tolerance)


def test_an_engine_that_skips_a_token_is_an_error(checkpoint):
    grammars, _ = engine(checkpoint)
    stepper = TokenStepper(grammars.new_state(), end(checkpoint))
    stepper.propose()
    with pytest.raises(ValueError, match="expected 0 or 1 accepted tokens, found 2"):
        stepper.accept(2)


@pytest.mark.parametrize("name", ["json", "grouped", "box_tokens"])
def test_an_answer_that_the_engine_cuts_off_is_reported_as_truncated(checkpoint, name):
    """An engine ends a sequence at its own maximum length, which prompt and answer share."""
    grammars, chooser = engine(checkpoint, {"answer_format": name})
    whole = decoded(grammars.new_state(), chooser, 3, grammars.vocabulary.size).tokens
    for length in range(1, len(whole)):
        stepper = TokenStepper(grammars.new_state(), end(checkpoint))
        for accepted in range(length):
            stepper.accept(accepted)
            choice = stepper.open_choice()
            if choice is not None:
                logits = logits_after(3, whole[:accepted], grammars.vocabulary.size)[None]
                [choice] = chooser.choose(MatrixLogits(logits, [0]), [choice])
            assert stepper.propose(choice).token == whole[accepted]
        state = stepper.finish()
        assert state.finish == "length" and len(state.tokens) == len(state.logprobs)
        assert state.tokens == whole[: len(state.tokens)] and len(state.tokens) >= length - 1


@pytest.mark.parametrize("name", ["json", "grouped", "box_tokens"])
def test_every_object_past_the_end_is_at_least_as_probable_as_the_threshold(checkpoint, name):
    grammars, chooser = engine(checkpoint, {"answer_format": name}, continue_above=0.2)
    states = [decoded(grammars.new_state(LABELS), chooser, seed, grammars.vocabulary.size) for seed in range(12)]
    parts = [obj.continued_logprob for state in states for obj in state.objects if obj.continued_logprob]
    assert len(parts) > 2 and min(map(math.exp, parts)) >= 0.2
