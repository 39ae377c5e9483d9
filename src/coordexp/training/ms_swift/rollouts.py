"""Rollouts: some samples of an optimizer step are replaced by the current model's own answers, corrected.

Which samples are replaced depends only on seed, epoch and index. The answers depend only on the weights and, if they
are sampled, on seed, step, epoch and index. So a resumed run repeats the steps of the interrupted one. See
`coordexp.training.rollout` for the sequences.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from torch import nn

from coordexp.answers import render
from coordexp.answers.formats import format_of
from coordexp.answers.parse import parse_answer
from coordexp.inference.decoder import ConstrainedDecoder
from coordexp.inference.encoding import Inputs, left_padded
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammars import Grammars
from coordexp.inference.options import PredictOptions
from coordexp.losses.targets import IGNORE, rejected_label
from coordexp.modeling.vocab import verified_ids
from coordexp.records import COORD_BINS, Object
from coordexp.runtime.errors import DataError, located
from coordexp.training.ms_swift.best_checkpoint import base_for_generation, evaluation_mode
from coordexp.training.ms_swift.custom_section import custom_section
from coordexp.training.ms_swift.dataset import TRAIN, samples
from coordexp.training.ms_swift.metrics import Mean, Total
from coordexp.training.ms_swift.template import SOURCE, TARGETS, SampleSource, style_of
from coordexp.training.rollout import Continuation, RolloutAnswer, arranged, departure, rollout_answer

NAME = "coordexp_rollouts"
COUNTS = ("rollouts", "matched", "missed", "false_positives", "unverified", "duplicates", "truncated", "discarded")
TOLERANCE = 0.25  # of an object's width or height: a coordinate that is farther away is of another object


def register() -> None:
    """Register `--callbacks coordexp_rollouts` with ms-swift."""
    callbacks_map[NAME] = RolloutCallback


class RolloutCallback(TrainerCallback):
    """Gives the trainer its rollouts."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Load what decoding needs."""
        self.trainer.replace_samples = Rollouts(self.trainer)


class Rollouts:
    """Replaces samples of a step in the micro-batches of this process."""

    def __init__(self, trainer: Any):
        self.trainer, self.template = trainer, trainer.template
        section = custom_section()
        self.options, self.seed = section.rollout, section.sample_seed
        self.rejects = section.loss.weights.get("unlikelihood", 0) > 0
        self.samples = samples(TRAIN)
        if self.rejects:
            self.samples.read_tables()
        self.decoding = PredictOptions(
            decode="argmax",
            temperature=section.loss.temperature,
            max_new_tokens=self.options.max_new_tokens,
            sample_temperature=self.options.temperature or 1.0,
            sample_seed=self.seed,
        )
        self.ids = verified_ids(Path(trainer.model.model_info.model_dir))
        self.vocabulary = Vocabulary(self.template.tokenizer)
        self.grammars: dict[render.PromptStyle, Grammars] = {}
        self.last_step = time.monotonic(), 0.0  # when it began, seconds of its rollouts

    def __call__(self, batches: list[dict[str, Any]]) -> None:
        """Replace samples of `batches`, the micro-batches of the coming step."""
        state, started = self.trainer.state, time.monotonic()
        encoded = [batch[TARGETS].pop(SOURCE).samples for batch in batches]
        share = self.options.share_at(state.global_step, state.global_step / max(state.max_steps, 1))
        chosen = [
            (n, i)
            for n, samples in enumerate(encoded)
            for i, sample in enumerate(samples)
            if share and self._is_chosen(sample[SOURCE], share)
        ]
        counts: Counter[str] = Counter()
        if share:
            with evaluation_mode(self.trainer.model), base_for_generation(self.trainer) as model:
                answers = self._answer(model, [encoded[n][i] for n, i in chosen])
            for (n, i), answer in zip(chosen, answers, strict=True):
                encoded[n][i] = self._replaced(encoded[n][i], answer, counts) or encoded[n][i]
        for n in {n for n, _ in chosen}:
            samples = [{key: sample[key] for key in sample if key != SOURCE} for sample in encoded[n]]
            batches[n] = self.trainer._prepare_inputs(self.template.data_collator(samples))
        self._log(counts, started)

    def _is_chosen(self, source: SampleSource, share: float) -> bool:
        if any(obj.bbox_2d is None for obj in source.sample.record.objects):
            return False
        return random.Random(f"rollout/{self.seed}/{source.epoch}/{source.index}").random() < share

    def _answer(self, model: nn.Module, samples: list[dict[str, Any]]) -> list[GenerationState]:
        """The model's answers to the prompts of encoded samples."""
        decoder = ConstrainedDecoder(model, self.ids, self.decoding)
        states = [self._state(sample[SOURCE]) for sample in samples]
        waiting = iter(zip(samples, states, strict=True))

        def refill(free: int) -> tuple[Inputs, list[GenerationState]] | None:
            taken = list(itertools.islice(waiting, free))
            if not taken:
                return None
            batch = left_padded([prompt_inputs(sample) for sample, _ in taken], self.template.tokenizer.pad_token_id)
            return {name: tensor.to(model.device) for name, tensor in batch.items()}, [state for _, state in taken]

        for _ in decoder.stream(refill, self.options.batch_size):
            pass
        return states

    def _state(self, source: SampleSource) -> GenerationState:
        style = style_of(source.sample)
        if style not in self.grammars:
            self.grammars[style] = Grammars(self.vocabulary, self.decoding, style)
        identity = (self.trainer.state.global_step, source.epoch, source.index)
        return self.grammars[style].new_state(None, int(self.options.temperature > 0), identity)

    def _replaced(
        self, encoded: dict[str, Any], answer: GenerationState, counts: Counter[str]
    ) -> dict[str, Any] | None:
        """The sample with the sequence of `answer`; None, counted, if the answer cannot be used."""
        if answer.finish != "stop":
            counts["truncated"] += 1
            return None
        source: SampleSource = encoded[SOURCE]
        style = style_of(source.sample)
        text = self.template.tokenizer.decode(answer.tokens, skip_special_tokens=False)
        answered = parse_answer(text, style.coordinates, style.answer_format).objects
        verified = self.samples.verified_descriptions(source.sample) if self.rejects else None
        rollout = rollout_answer(answered, source.sample.record.objects, self.options, verified)
        rollout = rollout and arranged(rollout, format_of(style))
        replaced = rollout and encode_rollout(self.template, encoded, rollout, rejects=self.rejects)
        if replaced is None:
            counts["discarded"] += 1
            return None
        counts["rollouts"] += 1
        counts.update(rollout.counts._asdict())
        return replaced

    def _log(self, counts: Counter[str], started: float) -> None:
        """Log the counts, and the share of the previous step's time that its rollouts took."""
        log, now = self.trainer.custom_metrics["train"], time.monotonic()
        for name in COUNTS:
            key = name if name == "rollouts" else f"rollout_{name}"
            log.setdefault(key, Total()).update(counts[name])
        before, seconds = self.last_step
        log.setdefault("rollout_time_share", Mean()).update(torch.tensor(seconds), started - before)
        log.setdefault("rollout_seconds", Mean()).update(torch.tensor(now - started), 1)
        self.last_step = started, now - started


def prompt_inputs(encoded: dict[str, Any]) -> Inputs:
    """Model inputs of the prompt of an encoded sample, each of the text [1, L]."""
    length, start = len(encoded["input_ids"]), encoded[SOURCE].start
    inputs: Inputs = {"input_ids": torch.tensor([encoded["input_ids"][:start]])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name, value in encoded.items():
        if isinstance(value, torch.Tensor):
            inputs[name] = value[None, :start] if value.shape == (length,) else value
    return inputs


def encode_rollout(
    template: Any, encoded: dict[str, Any], rollout: RolloutAnswer, *, rejects: bool
) -> dict[str, Any] | None:
    """An encoded sample with the answer of `rollout` in place of its own; None if it is too long.

    rejects: label the first token with which a rejected object departs from all remaining objects.
    """
    source: SampleSource = encoded[SOURCE]
    style, start = style_of(source.sample), source.start
    old = template._tokenize(render.render_answer(source.objects, style))
    suffix = encoded["input_ids"][start + len(old) :]
    if len(template.coordinates(old)) != sum(len(obj.coords) for obj in source.objects) or not suffix:
        raise DataError(located("the answer is encoded differently inside its sample", file=source.sample.source_line))
    tokens = template._tokenize(render.render_answer(rollout.objects, style))
    if template.max_length and start + len(tokens) + len(suffix) > template.max_length:
        return None
    read = list(tokens)
    template.disturb(read, rollout.read)
    labels = answer_labels(template, tokens, read, rollout, style, rejects=rejects)
    replaced = dict(encoded)
    replaced["input_ids"] = [*encoded["input_ids"][:start], *read, *suffix]
    replaced["labels"] = [*[IGNORE] * start, *labels, *encoded["labels"][-len(suffix) :]]
    for name, value in encoded.items():  # text of the same kind follows, e.g. in mm_token_type_ids
        if isinstance(value, torch.Tensor) and value.shape == (len(encoded["input_ids"]),):
            replaced[name] = torch.cat([value[:start], value.new_zeros(len(tokens) + len(suffix))])
    record = msgspec.structs.replace(source.sample.record, objects=rollout.objects)
    targets = template.targets(replaced["labels"], source.sample._replace(record=record), rollout.supervised)
    before = encoded[TARGETS]
    replaced[TARGETS] = targets._replace(cropped=before.cropped, skipped=before.skipped)
    return replaced


def answer_labels(
    template: Any,
    tokens: Sequence[int],
    read: Sequence[int],
    rollout: RolloutAnswer,
    style: render.PromptStyle,
    *,
    rejects: bool,
) -> list[int]:
    """Labels of an answer: its `tokens`, without objects that are no targets and what leads to them.

    read: the tokens with the coordinates that the model reads.
    """
    labels, positions = list(tokens), template.coordinates(tokens)
    begin = slot = 0
    for n, (obj, supervised) in enumerate(zip(rollout.objects, rollout.supervised, strict=True)):
        slot += len(obj.coords)
        end = positions[slot - 1] + 1
        if not supervised:
            labels[begin:end] = [IGNORE] * (end - begin)
            if rejects and rollout.rejected[n]:
                previous = rollout.objects[n - 1] if n else None
                pairs = zip(rollout.objects[n:], rollout.supervised[n:], strict=True)
                allowed = continuations(template, previous, [o for o, kept in pairs if kept], style)
                ids = range(template.coord_start, template.coord_start + COORD_BINS)
                at = begin + departure(read[begin:end], allowed, ids)
                labels[at] = rejected_label(read[at])
        begin = end
    return labels


def continuations(
    template: Any, previous: Object | None, remaining: Sequence[Object], style: render.PromptStyle
) -> list[Continuation]:
    """What may follow after `previous`: each of the `remaining` objects, or the end if there is none."""
    before = [] if previous is None else [previous]
    skip = sum(len(obj.coords) for obj in before)
    found = []
    for obj in remaining or [None]:
        tokens = template._tokenize(render.render_answer([*before, *([obj] if obj else [])], style))
        positions = template.coordinates(tokens)
        begin = positions[skip - 1] + 1 if skip else 0
        end = positions[-1] + 1 if obj else len(tokens)
        found.append(Continuation(tokens[begin:end], tolerances(obj) if obj else []))
    return found


def tolerances(obj: Object) -> list[int]:
    """By how many bins each coordinate of a box may differ from that of the same object."""
    x1, y1, x2, y2 = (value * (COORD_BINS - 1) for value in obj.norm)
    return [max(1, round(TOLERANCE * extent)) for extent in (x2 - x1, y2 - y1) * 2]
