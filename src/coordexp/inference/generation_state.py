"""One answer in the making: where it stands in the grammar, what was chosen, and what to feed next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from coordexp.inference.coordinates import DecodedCoordinate
from coordexp.inference.grammar.automaton import FIRST_ROLES
from coordexp.inference.grammar.token_grammar import Grammar, Node
from coordexp.inference.options import PredictOptions

MAX_PERIOD = 4  # tokens of the longest loop that is looked for in a description


@dataclass
class ObjectTrace:
    """Log probabilities (natural) behind one object; `first_slot` is the place of its geometry among the slots.

    next_logprob: of going on with an object at all. desc_logprob: sum over the `desc_tokens` free choices of
    the description. Choices are renormalised over what the grammar allows; forced tokens count nothing.
    """

    first_slot: int
    next_logprob: float = 0.0
    desc_logprob: float = 0.0
    desc_tokens: int = 0


class TokenChoice(NamedTuple):
    """The model's choice at one place, its log probability, and the slot's reading if it is a coordinate."""

    token: int
    logprob: float
    reading: DecodedCoordinate | None = None


@dataclass
class PendingToken:
    """One token of a chunk: forced (`node` None), chosen (with its logprob), or guessed (to be checked)."""

    token: int
    logprob: float = 0.0
    node: Node | None = None
    number: int = 0
    guess: bool = False
    reading: DecodedCoordinate | None = None


@dataclass
class Limits:
    """Where an answer is cut or closed; see `PredictOptions`."""

    max_new_tokens: int
    max_desc_tokens: int
    max_desc_loops: int
    max_repeats: int

    @classmethod
    def of(cls, options: PredictOptions) -> Limits:
        """The limits that `options` set."""
        return cls(options.max_new_tokens, options.max_desc_tokens, options.max_desc_loops, options.max_repeats)


@dataclass
class GenerationState:
    """State of one row: `tokens` and `logprobs` are settled, `chunk` is what the model reads next.

    `pieces`, set for styles with integer coordinates only, are the bytes that each token spells.

    Coordinate tokens are never counted as repetition on their own: only a whole object is, and only loops of
    description tokens are cut.
    """

    grammar: Grammar
    limits: Limits
    desc_first: bool = True
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    slots: list[DecodedCoordinate] = field(default_factory=list)
    objects: list[ObjectTrace] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    finish: Literal["stop", "length"] | None = None
    chunk: list[PendingToken] = field(default_factory=list)
    pieces: list[bytes] | None = None

    def __post_init__(self) -> None:
        self.number = self.grammar.start
        self._pending = ObjectTrace(0)
        self._desc_run: list[int] = []
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._object_start = 0
        self._must_close = False
        self._plan()

    @property
    def node(self) -> Node:
        """Where the answer stands after the chunk."""
        return self.grammar.node(self.number)

    @property
    def guesses(self) -> list[int]:
        """Places in the chunk of tokens that were fed ahead of the model's choice."""
        return [index for index, fed in enumerate(self.chunk) if fed.guess]

    def candidates(self, node: Node) -> list[int] | None:
        """The tokens to choose from at a node that is no slot; None for everything that a description allows."""
        if node.kind == "choice":
            return list(node.closes) if self._must_close and node.closes else list(node.follow)
        if self._in_loop() and node.finish:
            return sorted((node.closes if self._must_close else None) or node.finish)
        return None

    def banned(self, node: Node) -> list[int]:
        """Tokens of a description that must not come: ends with a further object when the answer is to be closed."""
        return sorted(node.finish - node.closes) if self._must_close and node.closes else []

    def bounds(self, role: str) -> tuple[int, int]:
        """Lowest and highest bin (norm1000) that may stand in a slot: a box keeps at least one bin."""
        if role in ("x1", "y1"):
            return 0, 998
        if role in ("x2", "y2"):
            readings = [*self.slots[-2:], *(fed.reading for fed in self.chunk if fed.reading)]
            return readings[-2].bin + 1, 999
        return 0, 999

    def settle(self, verdicts: Sequence[TokenChoice]) -> int:
        """Take the verdicts on each guess and on the place after the chunk; how many fed tokens hold.

        The first guess that the model would not have made is replaced, and what was fed after it is dropped.
        """
        chunk, guesses = self.chunk, self.guesses
        holds, verdict = len(chunk), verdicts[-1]
        for index, checked in zip(guesses, verdicts, strict=False):
            chunk[index].logprob = checked.logprob
            if checked.token != chunk[index].token:
                holds, verdict, self.number = index, checked, chunk[index].number
                break
        for fed in chunk[:holds]:
            self._commit(fed)
        node, number = self.node, self.number
        self.number = node.after(verdict.token)
        self.chunk = [PendingToken(verdict.token, verdict.logprob, node, number, reading=verdict.reading)]
        if self._must_close and verdict.token in node.closes:
            self.problems["repetition_closed"] += 1
        self._plan()
        return holds

    def _plan(self) -> None:
        """Extend the chunk by what is forced and by guesses, up to the next open choice; finish where it ends."""
        while (node := self.node).kind == "choice":
            token = node.forced
            guess = token is None
            if guess:
                token = node.guess if self.chunk and not (self._must_close and node.closes) else None
            if token is None:
                break
            self.chunk.append(PendingToken(token, node=node if guess else None, number=self.number, guess=guess))
            self.number = node.after(token)
        room = self.limits.max_new_tokens - len(self.tokens)
        if node.kind == "end" and len(self.chunk) <= room:
            self._finish("stop", len(self.chunk))
        elif len(self.chunk) >= room:
            certain = self.guesses[0] if self.guesses else len(self.chunk)
            self._finish("length", min(certain, room))

    def _finish(self, reason: Literal["stop", "length"], count: int) -> None:
        for fed in self.chunk[:count]:
            self._commit(fed)
        self.chunk = []
        self._attach_description()
        self.finish = reason

    def _commit(self, fed: PendingToken) -> None:
        node = fed.node
        if fed.reading is not None:
            self._commit_slot(fed)
        elif node is not None and node.kind == "choice" and node.closes:
            self._pending.next_logprob += 0.0 if fed.token in node.closes else fed.logprob
        elif node is not None:
            self._pending.desc_logprob += fed.logprob
            self._pending.desc_tokens += 1
        if node is not None:
            self._desc_run = [*self._desc_run, fed.token] if node.kind == "text" else []
        self.tokens.append(fed.token)
        self.logprobs.append(fed.logprob)

    def _commit_slot(self, fed: PendingToken) -> None:
        assert fed.node is not None and fed.reading is not None
        if fed.node.role in FIRST_ROLES:
            self._attach_description()
            new = ObjectTrace(len(self.slots), next_logprob=self._pending.next_logprob)
            if self.desc_first:
                new.desc_logprob, new.desc_tokens = self._pending.desc_logprob, self._pending.desc_tokens
            self.objects.append(new)
            self._count_repeats()
        self._pending = ObjectTrace(0)
        self.slots.append(fed.reading)

    def _attach_description(self) -> None:
        """With the geometry first, a description belongs to the object before it."""
        if not self.desc_first and self.objects and self._pending.desc_tokens:
            self.objects[-1].desc_logprob = self._pending.desc_logprob
            self.objects[-1].desc_tokens = self._pending.desc_tokens

    def _count_repeats(self) -> None:
        key = tuple(self.tokens[self._object_start :])
        self._object_start = len(self.tokens)
        self._seen[key] += 1
        self._must_close = self._must_close or self._seen[key] >= self.limits.max_repeats

    def _in_loop(self) -> bool:
        fed = [fed.token for fed in self.chunk if fed.node is not None and fed.node.kind == "text"]
        run, loops = self._desc_run + fed, self.limits.max_desc_loops
        if len(run) >= self.limits.max_desc_tokens:
            return True
        for period in range(1, MAX_PERIOD + 1):
            tail = run[-period * loops :]
            if len(tail) == period * loops and tail == tail[-period:] * loops:
                return True
        return False
