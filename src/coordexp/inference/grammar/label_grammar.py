"""The grammar whose descriptions are a given list: a trie of whole pieces of text, cut as in training."""

from __future__ import annotations

import json
from collections.abc import Sequence

from coordexp.inference.grammar.automaton import Automaton
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import Grammar, Node
from coordexp.runtime.errors import DataError


class LabelGrammar(Grammar):
    """Every piece between two coordinate tokens is one of finitely many token sequences.

    Numbers of the automaton's slots and end are kept; a state after a slot becomes the root of a trie, whose
    inner nodes are numbered from there on.
    """

    def __init__(self, vocabulary: Vocabulary, layout: Automaton, labels: Sequence[str]):
        if not labels or not all(label.strip() for label in labels):
            raise DataError("labels: expected at least one and none of them blank\n  -> give the categories to detect")
        self.vocabulary, self.layout = vocabulary, layout
        self.spellings = [json.dumps(label, ensure_ascii=False)[1:-1] for label in dict.fromkeys(labels)]
        self.start = layout.start
        self._nodes: dict[int, Node] = {layout.end: Node("end")}
        self._next_number = len(layout.edges)

    def node(self, number: int) -> Node:
        """See `Grammar.node`."""
        if number not in self._nodes:
            if number in self.layout.slots:
                role, following = self.layout.slots[number]
                self._nodes[number] = Node("slot", {-1: following}, role=role)
            else:
                pieces = [
                    (self.vocabulary.cut(text), target) for text, target in self.layout.endings(number, self.spellings)
                ]
                self._grow(number, pieces)
        return self._nodes[number]

    def _grow(self, number: int, pieces: list[tuple[list[int], int]]) -> None:
        """Make the node of `pieces` (tokens still to come, where they lead), and the nodes below it."""
        branches: dict[int, list[tuple[list[int], int]]] = {}
        for tokens, target in pieces:
            branches.setdefault(tokens[0], []).append((tokens[1:], target))
        follow: dict[int, int] = {}
        for token, rest in sorted(branches.items()):
            if rest[0][0]:
                follow[token] = self._next_number
                self._next_number += 1
                self._grow(follow[token], rest)
            else:
                follow[token] = rest[0][1]
        closes = {t for t, rest in branches.items() if all(target == self.layout.end for _, target in rest)}
        guesses = [token for token in follow if token not in closes]
        guess = guesses[0] if closes and len(guesses) == 1 else None
        self._nodes[number] = Node("choice", follow, frozenset(closes if guesses else ()), guess)
