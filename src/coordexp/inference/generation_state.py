"""The state of one answer during generation: accepted tokens, position in the grammar, and what to feed next.

Generation is speculative within the grammar: a step feeds the last chosen token together with the tokens that the
grammar forces after it and with draft tokens that are nearly always chosen. The model's choices then verify the drafts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.grammar.automaton import FIRST_ROLES
from coordexp.inference.grammar.token_grammar import Grammar, Node
from coordexp.inference.options import PredictOptions
from coordexp.inference.repetition import ObjectCopies, ends_in_loop
from coordexp.inference.sampling import Sampler


@dataclass
class ObjectLogprobs:
    """Log probabilities (natural) of the choices that make up one object.

    first_slot: index of its first coordinate among the answer's slots.
    next_logprob: of generating another object rather than ending the answer.
    continued_logprob: that the object exists although the model would have ended the answer: the sum of `next_logprob`
        over the objects since then; 0 before.
    desc_logprob: sum over the `desc_tokens` tokens of the description, without forced ones.

    Every choice is normalised over the tokens that the grammar allows, so forced tokens contribute nothing.
    """

    first_slot: int
    next_logprob: float = 0.0
    continued_logprob: float = 0.0
    desc_logprob: float = 0.0
    desc_tokens: int = 0


class TokenChoice(NamedTuple):
    """The token that the model chooses at one position, its log probability, and the coordinate if it is a slot.

    next_logprob: where the answer may end, log probability of all tokens together that start another object, given that
        the current object is complete.
    continued: the model would have ended the answer, which `continue_above` does not allow yet.
    ended_logprob: where a polygon may have a further point, log probability that it is complete.
    """

    token: int
    logprob: float
    coordinate: DecodedCoordinate | None = None
    next_logprob: float = 0.0
    continued: bool = False
    ended_logprob: float = 0.0


@dataclass
class PendingToken:
    """A token to feed that is not accepted yet: forced (`node` None), chosen, or a draft to be verified.

    `index` is that of `node` in the grammar.
    """

    token: int
    logprob: float = 0.0
    node: Node | None = None
    index: int = 0
    draft: bool = False
    coordinate: DecodedCoordinate | None = None
    next_logprob: float = 0.0
    continued: bool = False
    ended_logprob: float = 0.0


@dataclass
class GenerationState:
    """One answer of a batch.

    options: among them, where an answer or a description is ended.
    tokens, logprobs: accepted tokens and their natural log probabilities, 0.0 for forced ones.
    slots: accepted coordinates, in order.
    objects: log probabilities of each object.
    problems: counts by name of what limited the answer.
    finish: None while generating, `stop` at the end of the grammar, `length` at `max_new_tokens`.
    pending: tokens that the model reads in the next step.
    token_bytes: bytes of each token; only for styles with integer coordinates.
    sample: index among the answers to the same prompt; 0 is the most likely one.
    sampler: draws the tokens; None for the most likely ones.

    Only complete objects count as copies of each other, and only loops of description tokens are ended: repeated
    coordinate tokens alone are legitimate. `ObjectCopies` defines after which copy the answer must end.
    """

    grammar: Grammar
    options: PredictOptions
    desc_first: bool = True
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    slots: list[DecodedCoordinate] = field(default_factory=list)
    objects: list[ObjectLogprobs] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    finish: Literal["stop", "length"] | None = None
    pending: list[PendingToken] = field(default_factory=list)
    token_bytes: list[bytes] | None = None
    sample: int = 0
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        self.index = self.grammar.start
        self._current = ObjectLogprobs(0)
        self._continued: float | None = None  # sum of `next_logprob` since the model would have ended the answer
        self._desc_run: list[int] = []
        options = self.options
        max_suppressed = options.max_suppressed if options.suppress_repeats else None
        self._copies = ObjectCopies(options.repeat_iou, options.max_repeats, max_suppressed)
        self._text = b""  # accepted since the last coordinate
        self._object_desc: bytes | None = None  # of the current object, if the description precedes the geometry
        self._object_slots = 0  # index of the current object's first slot
        self._extend()

    @property
    def node(self) -> Node:
        """The grammar's node after the pending tokens."""
        return self.grammar.node(self.index)

    @property
    def drafts(self) -> list[int]:
        """Indices of the draft tokens in `pending`."""
        return [index for index, pending in enumerate(self.pending) if pending.draft]

    def candidates(self, node: Node) -> list[int] | None:
        """The tokens to choose from at a node other than a slot; None for all that a description allows."""
        if node.kind == "choice":
            return self._without_copies(node, list(node.follow))
        if self._in_loop() and node.finish:
            return self._without_copies(node, sorted(node.finish))
        return None

    def forbidden(self, node: Node) -> list[int]:
        """Tokens not allowed in a description: if the answer must close, those that start another object."""
        ends = sorted(node.finish) if node.closes else []
        return sorted(set(ends) - set(self._without_copies(node, ends)))

    @property
    def is_continued(self) -> bool:
        """Whether the model would have ended the answer before."""
        return self._continued is not None

    def continues(self, logprob: float, next_logprob: float) -> bool:
        """Whether another object follows at or after the position at which the model would end the answer.

        logprob: of the most likely token that starts another object. next_logprob: of all of them together.
        """
        threshold = self.options.continue_above
        if threshold is None or self.sampler is not None:
            return False
        further = next_logprob if self.grammar.format.shares_descriptions else logprob
        return math.exp((self._continued or 0.0) + further) >= threshold

    def bin_range(self, role: str) -> tuple[int, int]:
        """First and last bin (norm1000) allowed for a coordinate: a box is at least one bin wide and high."""
        if role in ("x1", "y1"):
            return 0, 998
        if role in ("x2", "y2"):
            pending = (token.coordinate for token in self.pending if token.coordinate)
            coordinates = [*self.slots[-2:], *pending]
            return coordinates[-2].bin + 1, 999
        return 0, 999

    def advance(self, choices: Sequence[TokenChoice]) -> int:
        """Accept pending tokens and append the next choice; returns how many pending tokens were accepted.

        `choices` are the model's choices at the position of each draft, then at the position after `pending`. The first
        draft that differs from the model's choice is replaced, and everything after it is dropped.
        """
        pending, drafts = self.pending, self.drafts
        accepted, choice = len(pending), choices[-1]
        for position, verified in zip(drafts, choices, strict=False):
            pending[position].logprob, pending[position].next_logprob = verified.logprob, verified.next_logprob
            pending[position].continued, pending[position].ended_logprob = verified.continued, verified.ended_logprob
            if verified.token != pending[position].token:
                accepted, choice, self.index = position, verified, pending[position].index
                break
        for token in pending[:accepted]:
            self._accept(token)
        node, index = self.node, self.index
        self.pending = []
        self._count_closed(node, choice.token)
        self.index = node.after(choice.token)
        self.pending = [PendingToken(choice.token, choice.logprob, node, index, False, *choice[2:])]
        self._extend()
        return accepted

    def _extend(self) -> None:
        """Append forced tokens and drafts to `pending`, up to the next open choice; finish the answer at its end."""
        while (node := self.node).kind == "choice":
            token = node.forced
            draft = token is None
            if draft:
                token = node.draft if self.pending else None
                if token is not None and token not in self._without_copies(node, [token, *node.closes]):
                    token = None
            if token is None:
                break
            self.pending.append(PendingToken(token, node=node if draft else None, index=self.index, draft=draft))
            self.index = node.after(token)
        remaining = self.options.max_new_tokens - len(self.tokens)
        if node.kind == "end" and len(self.pending) <= remaining:
            self._finish("stop", len(self.pending))
        elif len(self.pending) >= remaining:
            self.truncate(remaining)

    def truncate(self, count: int) -> None:
        """End the answer after at most `count` of its pending tokens, without drafts, which are not verified yet."""
        certain = self.drafts[0] if self.drafts else len(self.pending)
        self._finish("length", min(certain, count))

    def _finish(self, reason: Literal["stop", "length"], count: int) -> None:
        for token in self.pending[:count]:
            self._accept(token)
        self.pending = []
        self._assign_description()
        self.finish = reason

    def _accept(self, pending: PendingToken) -> None:
        node = pending.node
        if pending.coordinate is not None:
            self._accept_coordinate(pending)
        elif node is not None and pending.token in node.extends:
            pass  # the next coordinate belongs to the same object
        elif node is not None and node.kind == "choice" and node.closes:
            if pending.token not in node.closes:
                before = self._current.next_logprob
                self._accept_next(node, pending)
                if pending.continued or self._continued is not None:
                    self._continued = (self._continued or 0.0) + self._current.next_logprob - before
                    self._current.continued_logprob = self._continued
        elif node is not None and not (node.kind == "choice" and pending.token == node.draft):
            # an opening quote alone is part of the format, not of the description
            self._current.desc_logprob += pending.logprob - pending.ended_logprob
            self._current.desc_tokens += len(node.follow) - len(node.extends) > 1 or node.kind == "text"
        if node is not None:
            self._desc_run = [*self._desc_run, pending.token] if node.kind == "text" else []
        self._text = b"" if pending.coordinate else self._text + self._spelling(pending.token)
        self.tokens.append(pending.token)
        self.logprobs.append(pending.logprob)

    def _accept_next(self, node: Node, pending: PendingToken) -> None:
        """Where objects share a description, going on is also the choice between the same and another description."""
        if not self.grammar.format.shares_descriptions:
            self._current.next_logprob += pending.logprob - pending.ended_logprob
            return
        self._current.next_logprob += pending.next_logprob
        if len(node.follow) - len(node.closes) - len(node.extends) > 1:
            self._current.desc_logprob += pending.logprob - pending.ended_logprob - pending.next_logprob
            self._current.desc_tokens += 1

    def _accept_coordinate(self, pending: PendingToken) -> None:
        assert pending.node is not None and pending.coordinate is not None
        if pending.node.role in FIRST_ROLES:
            self._assign_description()
            current = self._current
            new = ObjectLogprobs(len(self.slots), current.next_logprob, current.continued_logprob)
            if self.desc_first:
                new.desc_logprob, new.desc_tokens = self._current.desc_logprob, self._current.desc_tokens
            self.objects.append(new)
            self._begin_object()
        self._current = ObjectLogprobs(0)
        self.slots.append(pending.coordinate)

    def _assign_description(self) -> None:
        """With the geometry first, a description belongs to the previous object."""
        if not self.desc_first and self.objects and self._current.desc_tokens:
            self.objects[-1].desc_logprob = self._current.desc_logprob
            self.objects[-1].desc_tokens = self._current.desc_tokens

    def _begin_object(self) -> None:
        """Record the previous object, which is complete at the first slot of another one."""
        desc = self.grammar.format.description(self._text)
        previous = self._object_desc if self.desc_first else desc
        if self.slots and previous is not None:
            self._copies.add(previous, tuple(slot.bin for slot in self.slots[self._object_slots :]))
        if desc is not None or not self.desc_first:  # otherwise the object shares the previous one's description
            self._object_desc = desc
        self._object_slots = len(self.slots)

    def _without_copies(self, node: Node, tokens: list[int]) -> list[int]:
        """`tokens` without those that start another object after the last allowed copy; `tokens` if none remains."""
        slots, text = self.slots[self._object_slots :], self._text
        for pending in self.pending:
            if pending.coordinate:
                slots, text = [*slots, pending.coordinate], b""
            else:
                text += self._spelling(pending.token)
        bins = tuple(slot.bin for slot in slots)
        if not self._copies.can_end_answer(bins):
            return tokens
        known: dict[bytes | None, bool] = {None: False}

        def last_copy(token: int) -> bool:
            desc = (
                self._object_desc if self.desc_first else self.grammar.format.description(text + self._spelling(token))
            )
            if desc not in known:
                known[desc] = self._copies.end_answer(desc, bins)
            return known[desc]

        return [t for t in tokens if not last_copy(t) or self._can_end(node.after(t))] or tokens

    def _spelling(self, token: int) -> bytes:
        return self.grammar.vocabulary.bytes_of(token)

    def _can_end(self, index: int) -> bool:
        """Whether the answer can end at or after node `index` without another object."""
        node = self.grammar.node(index)
        if node.kind == "choice":
            return any(self._can_end(following) for following in node.follow.values())
        return node.kind == "end" or (node.kind == "slot" and node.role == "x")

    def _count_closed(self, node: Node, token: int) -> None:
        """Count that a limit rather than the model ends the answer or the description."""
        if node.kind == "text" and token in node.finish and self._in_loop():
            self.problems["description_closed"] += 1
        if token in node.closes and len(self._without_copies(node, list(node.follow))) < len(node.follow):
            self.problems["repetition_closed"] += 1

    def _in_loop(self) -> bool:
        """Whether the description so far is too long or ends in a loop."""
        pending = [token.token for token in self.pending if token.node is not None and token.node.kind == "text"]
        run = self._desc_run + pending
        if len(run) >= self.options.max_desc_tokens:
            return True
        return ends_in_loop(run, self.options.max_desc_loops, self.grammar.vocabulary.spelling)
