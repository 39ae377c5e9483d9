"""The answers in progress in an engine's batch, one token per row and step, whatever the engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from coordexp.inference.coordinates import coordinate_logits
from coordexp.inference.generation_state import TokenChoice
from coordexp.inference.grammars import Grammars
from coordexp.inference.token_chooser import TokenChooser
from coordexp.inference.token_stepper import TokenStepper

MAX_UNFINISHED = (
    8192  # answers that left the batch unfinished: preempted, or cancelled, which an engine does not report
)
MAX_ENDED = 256  # complete answers that are kept in case the engine discards their last token


@dataclass
class Answer:
    """One request: `output` is the engine's list of accepted tokens, which it extends."""

    params: Any  # holds the reference, so that its id stays unique
    output: list[int]
    stepper: TokenStepper
    with_coordinates: bool


class MatrixLogits:
    """Logits [N, vocabulary] that an engine has computed, for the rows `index` (`token_chooser.Logits`)."""

    def __init__(self, logits: torch.Tensor, index: list[int]):
        self._logits, self._index = logits, index

    def columns(self, rows: list[int], columns: slice | torch.Tensor) -> torch.Tensor:
        """Logits of some tokens."""
        return self._logits[[self._index[row] for row in rows]][:, columns].float()

    def all(self, rows: list[int]) -> torch.Tensor:
        """Logits of all tokens."""
        return self._logits[[self._index[row] for row in rows]].float()


class AnswersInBatch:
    """Advances the answers of a batch and writes their next tokens into the logits.

    end_token: ends an answer. aux_tokens: three tokens that report coordinates, none of them a coordinate token.
    """

    def __init__(self, grammars: Grammars, chooser: TokenChooser, end_token: int, aux_tokens: Sequence[int]):
        self.grammars, self.chooser = grammars, chooser
        self.end_token, self.aux_tokens = end_token, list(aux_tokens)
        self._answers: OrderedDict[int, Answer] = OrderedDict()  # by the id of their params
        self._ended: OrderedDict[int, Answer] = OrderedDict()

    def enter(
        self,
        params: Any,
        output: list[int],
        labels: Sequence[str] | None,
        with_coordinates: bool = False,
        *sample: Any,
    ) -> Answer:
        """The answer of a request that enters the batch, continued if the engine had preempted it.

        params: an object that identifies the request. labels: the only descriptions allowed, if given. sample: its
        number and the identity of the request, as in `Grammars.new_state`.
        """
        key = id(params)
        answer = self._answers.get(key) or self._ended.pop(key, None)
        if answer is None:
            if output:
                raise RuntimeError("a request entered the batch again after its answer was discarded")
            stepper = TokenStepper(self.grammars.new_state(labels, *sample), self.end_token)
            answer = Answer(params, output, stepper, with_coordinates)
        answer.output = output
        _put(self._answers, key, answer, MAX_UNFINISHED)
        return answer

    def leave(self, answer: Answer) -> None:
        """Note that an answer has left the batch: finished, preempted or cancelled."""
        if answer.stepper.ended:
            self._answers.pop(id(answer.params), None)
            _put(self._ended, id(answer.params), answer, MAX_ENDED)

    def apply(self, logits: torch.Tensor, rows: dict[int, Answer]) -> None:
        """Write the next token of each answer into its row of `logits` [N, vocabulary], in place.

        Only the chosen token keeps a finite logit, its log probability under the grammar, so that the engine samples it
        and reports this value; requests that ask for them also get the coordinate of a slot (`coordinate_logits`).
        """
        if not rows:
            return
        for answer in rows.values():
            answer.stepper.accept(len(answer.output))
        waiting = {row: choice for row, a in rows.items() if (choice := a.stepper.open_choice()) is not None}
        chosen: dict[int, TokenChoice] = {}
        if waiting:
            choices = self.chooser.choose(MatrixLogits(logits, list(waiting)), list(waiting.values()))
            chosen = dict(zip(waiting, choices, strict=True))
        at_row, at_token, values = [], [], []
        for row, answer in rows.items():
            choice = answer.stepper.propose(chosen.get(row))
            entries = [(choice.token, choice.logprob)]
            if answer.with_coordinates and choice.coordinate is not None:
                entries += zip(self.aux_tokens, coordinate_logits(choice.coordinate), strict=True)
            for token, value in entries:
                at_row.append(row)
                at_token.append(token)
                values.append(value)
        device = logits.device
        logits.index_fill_(0, torch.tensor(list(rows), device=device), -torch.inf)
        index = (torch.tensor(at_row, device=device), torch.tensor(at_token, device=device))
        logits.index_put_(index, torch.tensor(values, device=device, dtype=logits.dtype))


def _put(answers: OrderedDict[int, Answer], key: int, answer: Answer, limit: int) -> None:
    answers[key] = answer
    if len(answers) > limit:
        answers.popitem(last=False)
