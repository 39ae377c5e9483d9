"""The answer format over tokens: which tokens are allowed next, which one is forced, and where a coordinate follows.

In training, the text between two coordinate tokens is tokenized in one piece. Outside of descriptions, therefore, only
tokens that occur in such a tokenization are allowed, and a single one is forced. Inside a description, every token that
keeps the JSON valid is allowed. With `labels`, only the token sequences of the given labels are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coordexp.answers.formats import AnswerFormat, format_of
from coordexp.answers.parsed_answer import Kind
from coordexp.answers.render import PromptStyle
from coordexp.inference.grammar import automaton as byte_automaton
from coordexp.inference.grammar.automaton import FIRST_ROLES, Automaton, Role
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.runtime.errors import ConfigError


@dataclass
class Node:
    """One position in an answer.

    kind: `choice` between few tokens (if it is one token, it is forced), `text` inside a description, `slot` for a
        coordinate, or `end`.
    follow: token -> index of the next node; a slot has one next node, under the key -1.
    closes: tokens after which no further object can follow.
    extends: tokens that add a point to the polygon. The probability of the others but `closes` is that of an object.
    draft: the token that is nearly always chosen here; it is fed before the model has chosen, and verified.
    role: for `slot`, which coordinate it is.
    allowed: for `text`, bool [vocabulary size].
    default: for `text`, the next node of tokens that are not in `follow`.
    finish: for `text`, the tokens that end the description.
    """

    kind: Literal["choice", "text", "slot", "end"]
    follow: dict[int, int] = field(default_factory=dict)
    closes: frozenset[int] = frozenset()
    extends: frozenset[int] = frozenset()
    draft: int | None = None
    role: Role | None = None
    allowed: np.ndarray | None = None
    default: int | None = None
    finish: frozenset[int] = frozenset()

    @property
    def forced(self) -> int | None:
        """The token of a choice with only one."""
        return next(iter(self.follow)) if self.kind == "choice" and len(self.follow) == 1 else None

    def after(self, token: int) -> int:
        """Index of the node after `token`, which must be allowed."""
        if self.kind == "slot":
            return self.follow[-1]
        following = self.follow.get(token, self.default)
        assert following is not None, f"token {token} is not allowed by the grammar"
        return following


class Grammar:
    """Nodes by index, compiled on first use. `start` is the position right after the prompt."""

    start: int
    vocabulary: Vocabulary
    format: AnswerFormat = format_of(PromptStyle())

    def node(self, index: int) -> Node:
        """The node with an index from `start` or `Node.after`."""
        raise NotImplementedError

    def admits(self, tokens: Sequence[int], coord_range: range) -> bool:
        """Whether a complete answer, without its end-of-turn token, is a path; `coord_range` are coordinate ids."""
        index = self.start
        for token in tokens:
            node = self.node(index)
            if node.kind == "end" or (node.kind == "slot") != (token in coord_range):
                return False
            if node.kind == "text" and not (token < len(node.allowed) and node.allowed[token]):
                return False
            if node.kind == "choice" and token not in node.follow:
                return False
            index = node.after(token)
        node, end_token = self.node(index), self.vocabulary.special.get(self.format.end_token)
        return node.kind == "end" or (end_token is not None and end_token in node.follow)


def compile_grammar(
    tokenizer: Any,
    style: PromptStyle,
    *,
    kinds: tuple[Kind, ...] = ("bbox_2d",),
    labels: Sequence[str] | None = None,
    poly_max_points: int = 20,
) -> Grammar:
    """The grammar of answers in `style`; with `labels`, they are the only descriptions allowed."""
    vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary(tokenizer)
    automaton = byte_automaton.build(style, kinds, poly_max_points)
    automaton.format.check_tokens(vocabulary.special)
    if labels is None:
        return OpenGrammar(vocabulary, automaton)
    if style.coordinates == "integer":
        raise ConfigError("restrict_labels needs coordinate tokens\n  -> set it to false for `coordinates: integer`")
    from coordexp.inference.grammar.label_grammar import LabelGrammar

    return LabelGrammar(vocabulary, automaton, labels)


def likely_next(follow: dict[int, int], closes: frozenset[int], automaton: Automaton) -> int | None:
    """The token of a further object: the only one that does not end the answer, or the one to its first coordinate."""
    others = [token for token in follow if token not in closes]
    first = [token for token in others if automaton.slots.get(follow[token], (None,))[0] in FIRST_ROLES]
    found = others if len(others) == 1 else first
    return found[0] if len(found) == 1 else None


def adds_point(state: int, automaton: Automaton) -> bool:
    """Whether every path from a state leads to a further point of a polygon."""
    targets = [target for _, target in automaton.endings(state)]
    return all(automaton.slots.get(target, (None,))[0] == "x" for target in targets)


class OpenGrammar(Grammar):
    """Any description is allowed; node indices are the states of the automaton."""

    def __init__(self, vocabulary: Vocabulary, automaton: Automaton):
        self.vocabulary, self.automaton, self.format = vocabulary, automaton, automaton.format
        self.start = automaton.start
        self._nodes: dict[int, Node] = {}

    def node(self, index: int) -> Node:
        """See `Grammar.node`."""
        if index not in self._nodes:
            self._nodes[index] = self._compile(index)
        return self._nodes[index]

    def _compile(self, state: int) -> Node:
        automaton = self.automaton
        if state == automaton.end:
            return Node("end")
        if state in automaton.slots:
            role, following = automaton.slots[state]
            return Node("slot", {-1: following}, role=role)
        if state in automaton.context:
            return self._skeleton(state, automaton.context[state])
        if state in automaton.number:
            return self._skeleton(state, "" if state in automaton.number_start else byte_automaton.SAMPLE_NUMBER)
        return self._description(state)

    def _skeleton(self, state: int, prefix: str) -> Node:
        """The node of a state outside of descriptions; `prefix` is the text since the last coordinate."""
        candidates = self._reachable(state)
        follow = {t: s for t, s in candidates.items() if self._occurs(prefix, t, s)}
        if not follow:  # reached by a tokenization that training never shows: continue with that of the remaining text
            first = [self.vocabulary.tokenize(text)[0] for text, _ in self.automaton.endings(state)]
            follow = {t: candidates[t] for t in first if t in candidates}
        closes = frozenset(t for t, s in follow.items() if self._only_end(s))
        if len(closes) == len(follow):
            closes = frozenset()
        extends = frozenset(t for t, s in follow.items() if adds_point(s, self.automaton))
        return Node("choice", follow, closes, extends, self._draft(state, prefix, follow, closes))

    def _draft(self, state: int, prefix: str, follow: dict[int, int], closes: frozenset[int]) -> int | None:
        """A further object rather than the end, and an opening quote alone rather than with a character after it."""
        if closes and (found := likely_next(follow, closes, self.automaton)) is not None:
            return found
        if len(follow) == 1 or state in self.automaton.number:
            return None
        usual = self._token_at(prefix + self.automaton.endings(state)[-1][0], len(prefix.encode()))
        return usual if usual in follow and follow[usual] == self.automaton.blank else None

    def _only_end(self, state: int) -> bool:
        """Whether every path from `state` leads to the end without another object."""
        if state == self.automaton.end:
            return True
        return state in self.automaton.context and all(self._only_end(s) for s in self.node(state).follow.values())

    def _description(self, state: int) -> Node:
        automaton, vocabulary = self.automaton, self.vocabulary
        inside = state in (automaton.blank, automaton.text)
        follow = self._reachable(state, vocabulary.others if inside else None)
        ends = {t: s for t, s in follow.items() if s in automaton.context or s == automaton.end}
        finish = {t: s for t, s in ends.items() if self._occurs(byte_automaton.SAMPLE_DESC, t, s)}
        follow = {t: s for t, s in follow.items() if t not in ends or t in finish}
        closes = frozenset(t for t, s in finish.items() if self._only_end(s))
        allowed = np.zeros(vocabulary.size, dtype=bool)
        allowed[list(follow)] = True
        if inside:
            allowed[self._plain()] = True
        default = automaton.text if inside else None
        return Node("text", follow, closes, allowed=allowed, default=default, finish=frozenset(finish))

    def _plain(self) -> list[int]:
        """The tokens that are allowed anywhere inside a description."""
        reserved, spelling = self.format.reserved.encode(), self.vocabulary.spelling
        return [token for token in self.vocabulary.plain if not any(byte in reserved for byte in spelling[token])]

    def _reachable(self, state: int, tokens: Iterable[tuple[int, bytes]] | None = None) -> dict[int, int]:
        """Token -> the state that it leads to from `state`, for each of `tokens` (default: all) that leads to one."""
        by_first_byte = self.vocabulary.by_first_byte
        tokens = tokens or (entry for byte in self.automaton.edges[state] for entry in by_first_byte.get(byte, ()))
        walked = ((token, self.automaton.walk(state, data)) for token, data in tokens)
        found = {token: following for token, following in walked if following is not None}
        special = self.automaton.special.get(state, {})
        return found | {self.vocabulary.special[text]: following for text, following in special.items()}

    def _occurs(self, prefix: str, token: int, following: int) -> bool:
        """Whether the tokenizer itself produces `token` after `prefix`, in some text that continues at `following`."""
        try:
            text = prefix + self.vocabulary.bytes_of(token).decode()
        except UnicodeDecodeError:
            return True
        position = len(prefix.encode())
        return any(self._token_at(text + ending, position) == token for ending in self._endings(following))

    def _endings(self, state: int) -> list[str]:
        automaton = self.automaton
        known = state in automaton.context or state in automaton.slots or state in automaton.number
        known = known or state in (automaton.end, automaton.blank, automaton.text)
        return [text for text, _ in automaton.endings(state, byte_automaton.STARTS)] if known else [""]

    def _token_at(self, text: str, position: int) -> int | None:
        """The token that starts at byte `position` of the tokenized `text`; None if none starts there."""
        for token in self.vocabulary.tokenize(text):
            if position == 0:
                return token
            position -= len(self.vocabulary.bytes_of(token))
        return None
