"""The grammar whose descriptions are a given list of labels: a trie of token sequences, tokenized as in training."""

from __future__ import annotations

from collections.abc import Sequence

from coordexp.inference.grammar.automaton import Automaton
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import Grammar, Node, adds_point, likely_next
from coordexp.runtime.errors import DataError


class LabelGrammar(Grammar):
    """Every text between two coordinate tokens is one of finitely many token sequences.

    Slots and the end keep the indices of their automaton states. The state after a slot becomes the root of a trie,
    whose inner nodes are numbered after the last state.
    """

    def __init__(self, vocabulary: Vocabulary, automaton: Automaton, labels: Sequence[str]):
        if not labels or not all(label.strip() for label in labels):
            raise DataError("labels: expected at least one and none of them blank\n  -> pass the categories to detect")
        self.vocabulary, self.automaton, self.format = vocabulary, automaton, automaton.format
        self.spellings = [automaton.format.escape(label) for label in dict.fromkeys(labels)]
        self.start = automaton.start
        self._nodes: dict[int, Node] = {automaton.end: Node("end")}
        self._next_index = len(automaton.edges)

    def node(self, index: int) -> Node:
        """See `Grammar.node`."""
        if index not in self._nodes:
            if index in self.automaton.slots:
                role, following = self.automaton.slots[index]
                self._nodes[index] = Node("slot", {-1: following}, role=role)
            else:
                endings = self.automaton.endings(index, self.spellings)
                self._add_trie(index, [(self.vocabulary.tokenize(text), target) for text, target in endings])
        return self._nodes[index]

    def _add_trie(self, index: int, sequences: list[tuple[list[int], int]]) -> None:
        """Add the node `index` of `sequences` (remaining tokens, node they lead to), and the nodes below it."""
        branches: dict[int, list[tuple[list[int], int]]] = {}
        for tokens, target in sequences:
            branches.setdefault(tokens[0], []).append((tokens[1:], target))
        follow: dict[int, int] = {}
        for token, rest in sorted(branches.items()):
            if rest[0][0]:
                follow[token] = self._next_index
                self._next_index += 1
                self._add_trie(follow[token], rest)
            else:
                follow[token] = rest[0][1]
        end = self.automaton.end
        closes = {token for token, rest in branches.items() if all(target == end for _, target in rest)}
        closes = frozenset(closes if len(closes) < len(follow) else ())
        draft = likely_next(follow, closes, self.automaton) if closes else None
        points = (t for t, rest in branches.items() if all(adds_point(target, self.automaton) for _, target in rest))
        self._nodes[index] = Node("choice", follow, closes, frozenset(points), draft)
