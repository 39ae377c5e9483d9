"""The answer's layout over tokens: which tokens may follow, which must, and where a coordinate stands.

Training cuts the text between two coordinate tokens in one piece, so at a place in the skeleton only tokens
that occur in such a cutting are allowed, and where there is one it is forced. Inside a description every
token that keeps the text well-formed is allowed. With `labels`, the pieces of text are cut label by label
and only their token sequences exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coordexp.answers.parse import Kind
from coordexp.answers.render import PromptStyle
from coordexp.inference.grammar import automaton
from coordexp.inference.grammar.automaton import Role
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.runtime.errors import ConfigError


@dataclass
class Node:
    """One place in an answer.

    kind: `choice` between few tokens (one: forced), `text` inside a description, `slot`, or `end`.
    follow: token -> next node; a slot's only follower is under -1.
    closes: tokens after which no further object can come; the probability of the others is that of an object.
    guess: the token that is nearly always right here, worth trying ahead of the model's answer.
    allowed: for `text`, bool [vocabulary size]; `finish` are its tokens that end the description.
    """

    kind: Literal["choice", "text", "slot", "end"]
    follow: dict[int, int] = field(default_factory=dict)
    closes: frozenset[int] = frozenset()
    guess: int | None = None
    role: Role | None = None
    allowed: np.ndarray | None = None
    default: int | None = None
    finish: frozenset[int] = frozenset()

    @property
    def forced(self) -> int | None:
        """The only token that can stand here."""
        return next(iter(self.follow)) if self.kind == "choice" and len(self.follow) == 1 else None

    def after(self, token: int) -> int:
        """Node after `token`, which must be allowed here."""
        if self.kind == "slot":
            return self.follow[-1]
        following = self.follow.get(token, self.default)
        assert following is not None, f"token {token} cannot stand here"
        return following


class Grammar:
    """Nodes by number, made when first asked for. `start` is the place right after the prompt."""

    start: int

    def node(self, number: int) -> Node:
        """The node of a number that `start`, `Node.after` or another node gave."""
        raise NotImplementedError

    def admits(self, tokens: Sequence[int], coord_range: range) -> bool:
        """Whether a whole answer, without its end-of-turn token, is a path of this grammar."""
        number = self.start
        for token in tokens:
            node = self.node(number)
            if node.kind == "end" or (node.kind == "slot") != (token in coord_range):
                return False
            if node.kind == "text" and not (token < len(node.allowed) and node.allowed[token]):
                return False
            if node.kind == "choice" and token not in node.follow:
                return False
            number = node.after(token)
        return self.node(number).kind == "end"


def compile_grammar(
    tokenizer: Any,
    style: PromptStyle,
    *,
    kinds: tuple[Kind, ...] = ("bbox_2d",),
    labels: Sequence[str] | None = None,
    poly_max_points: int = 20,
) -> Grammar:
    """The grammar of answers in `style`; with `labels`, descriptions are exactly these."""
    vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary(tokenizer)
    layout = automaton.build(style, kinds, poly_max_points)
    if labels is None:
        return OpenGrammar(vocabulary, layout)
    if style.coordinates == "integer":
        raise ConfigError("restrict_labels needs coordinate tokens\n  -> leave it off for styles with integers")
    from coordexp.inference.grammar.label_grammar import LabelGrammar

    return LabelGrammar(vocabulary, layout, labels)


class OpenGrammar(Grammar):
    """Free descriptions: nodes are the automaton's states."""

    def __init__(self, vocabulary: Vocabulary, layout: automaton.Automaton):
        self.vocabulary, self.layout = vocabulary, layout
        self.start = layout.start
        self._nodes: dict[int, Node] = {}

    def node(self, number: int) -> Node:
        """See `Grammar.node`."""
        if number not in self._nodes:
            self._nodes[number] = self._compile(number)
        return self._nodes[number]

    def _compile(self, state: int) -> Node:
        layout = self.layout
        if state == layout.end:
            return Node("end")
        if state in layout.slots:
            role, following = layout.slots[state]
            return Node("slot", {-1: following}, role=role)
        if state in layout.context:
            return self._skeleton(state, layout.context[state])
        if state in layout.number:
            return self._skeleton(state, "" if state in layout.number_start else automaton.SAMPLE_NUMBER)
        return self._description(state)

    def _skeleton(self, state: int, prefix: str) -> Node:
        layout = self.layout
        candidates = self._reachable(state)
        follow = {t: s for t, s in candidates.items() if self._is_cut(prefix, t, s)}
        if not follow:  # a cutting that training never shows led here: go on with the best cutting of what is left
            cuts = [self.vocabulary.cut(text)[0] for text, _ in layout.endings(state)]
            follow = {t: candidates[t] for t in cuts if t in candidates}
        closes = frozenset(t for t, s in follow.items() if self._only_end(s))
        if len(closes) == len(follow):
            closes = frozenset()
        return Node("choice", follow, closes, self._guess(state, prefix, follow, closes))

    def _guess(self, state: int, prefix: str, follow: dict[int, int], closes: frozenset[int]) -> int | None:
        """A further object rather than none, and an opening quote alone rather than with a sign after it."""
        if closes:
            others = [token for token in follow if token not in closes]
            return others[0] if len(others) == 1 else None
        if len(follow) == 1 or state in self.layout.number:
            return None
        usual = self._cut_at(prefix + self.layout.endings(state)[0][0], len(prefix))
        return usual if usual in follow and follow[usual] == self.layout.blank else None

    def _only_end(self, state: int) -> bool:
        if state == self.layout.end:
            return True
        return state in self.layout.context and all(self._only_end(s) for s in self.node(state).follow.values())

    def _description(self, state: int) -> Node:
        layout, vocabulary = self.layout, self.vocabulary
        inside = state in (layout.blank, layout.text)
        follow = self._reachable(state, vocabulary.others if inside else None)
        ends = {t: s for t, s in follow.items() if s in layout.context or s == layout.end}
        finish = {t: s for t, s in ends.items() if self._is_cut(automaton.SAMPLE_DESC, t, s)}
        follow = {t: s for t, s in follow.items() if t not in ends or t in finish}
        closes = frozenset(t for t, s in finish.items() if self._only_end(s))
        allowed = np.zeros(vocabulary.size, dtype=bool)
        allowed[list(follow)] = True
        if inside:
            allowed[vocabulary.plain] = True
        default = layout.text if inside else None
        return Node("text", follow, closes, allowed=allowed, default=default, finish=frozenset(finish))

    def _reachable(self, state: int, tokens: Iterable[tuple[int, bytes]] | None = None) -> dict[int, int]:
        """Where each of `tokens` (all of them if None) leads from `state`."""
        by_first_byte = self.vocabulary.by_first_byte
        tokens = tokens or (entry for byte in self.layout.edges[state] for entry in by_first_byte.get(byte, ()))
        walked = ((token, self.layout.walk(state, data)) for token, data in tokens)
        return {token: following for token, following in walked if following is not None}

    def _is_cut(self, prefix: str, token: int, following: int) -> bool:
        """Whether the tokenizer itself can put `token` after `prefix`."""
        try:
            text = prefix + self.vocabulary.spelling[token].decode()
        except UnicodeDecodeError:
            return True
        return any(self._cut_at(text + ending, len(prefix.encode())) == token for ending in self._endings(following))

    def _endings(self, state: int) -> list[str]:
        layout = self.layout
        known = state in layout.context or state in layout.slots or state in layout.number
        known = known or state in (layout.end, layout.blank, layout.text)
        return [text for text, _ in layout.endings(state)] if known else [""]

    def _cut_at(self, text: str, position: int) -> int | None:
        """The token that starts at byte `position` when `text` is cut in one piece; None if none does."""
        for token in self.vocabulary.cut(text):
            if position == 0:
                return token
            position -= len(self.vocabulary.spelling[token])
        return None
