"""The logits processor that vLLM loads: answers under our grammar, for every request of an engine.

Arguments of a request, in `SamplingParams.extra_args` (`vllm_xargs` of a served request): `labels`, a list of the only
descriptions allowed; `coordinates`, 1 to report the coordinate of each slot in the log probabilities (`answers`). For
an engine in this process also `coordexp_key`, the key of the answer in `STEPPERS`, and `sample`, `identity` as in
`Grammars.new_state`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SecondRunnerProcessor

from coordexp.inference.grammars import Grammars
from coordexp.inference.token_chooser import TokenChooser
from coordexp.inference.token_stepper import TokenStepper
from coordexp.inference.vllm_engine.answers import Answer, AnswersInBatch
from coordexp.inference.vllm_engine.settings import CONFIG_KEY, PluginConfig, request_problem
from coordexp.modeling.vocab import verified_ids
from coordexp.runtime.plugins import load_plugins

# Answers by the key of their request, for an engine in the same process; None until a request has started.
STEPPERS: dict[int, TokenStepper | None] = {}


class GrammarProcessor(LogitsProcessor, SecondRunnerProcessor):
    """Applies the grammar in engines that CoordExp starts, and does nothing in any other.

    It implements the interface of the first model runner. It is a subclass of the other interface, too, because the
    second model runner rejects every other class, and an installed entry point must not stop engines of other models.
    """

    def __init__(self, vllm_config: Any, *given: Any):
        config = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        self.answers: AnswersInBatch | None = None
        self._rows: dict[int, Answer] = {}
        if config is None:
            return
        if len(given) != 2:  # device and is_pin_memory; the second model runner passes its requests
            raise RuntimeError("CoordExp needs vLLM's first model runner\n  -> set VLLM_USE_V2_MODEL_RUNNER=0")
        load_plugins()
        self.answers = _answers(vllm_config.model_config.model, msgspec.convert(config, PluginConfig), given[0])

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Reject a request to `coordexp serve` that cannot be answered."""
        if (problem := request_problem(sampling_params)) is not None:
            raise VLLMValidationError(problem)

    def is_argmax_invariant(self) -> bool:
        """Whether greedy sampling may skip it."""
        return False

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Decline a request of the second model runner."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests to their rows in the batch."""
        if self.answers is None or batch_update is None:
            return
        left = [self._rows.pop(row) for row in batch_update.removed if row in self._rows]
        for row, params, _, output in batch_update.added:
            given = _arguments(params)
            if row in self._rows:
                left.append(self._rows[row])
            sample = (given.get("sample", 0), given.get("identity", ()))
            answer = self.answers.enter(params, output, given.get("labels"), bool(given.get("coordinates")), *sample)
            self._rows[row] = answer
            if given.get("coordexp_key") in STEPPERS:
                STEPPERS[given["coordexp_key"]] = answer.stepper
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced
        for answer in left:
            self.answers.leave(answer)

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        """Logits [rows, vocabulary] in which only the chosen token of each row is finite."""
        if self.answers is not None:
            self.answers.apply(logits, self._rows)
        return logits


def _arguments(params: Any) -> dict[str, Any]:
    return getattr(params, "extra_args", None) or {}


def _answers(folder: str, config: PluginConfig, device: torch.device) -> AnswersInBatch:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    ids = verified_ids(folder) if config.style.coordinates == "token" else None
    chooser = TokenChooser(ids, config.options, device)
    grammars = Grammars(tokenizer, config.options, config.style)
    return AnswersInBatch(grammars, chooser, tokenizer.eos_token_id, sorted(grammars.vocabulary.spelling)[:3])
