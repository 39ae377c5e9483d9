"""The grammar of given labels: it writes every label, only the labels, and tokenizes them as in training."""

import pytest

from coordexp.answers.render import PromptStyle
from coordexp.inference.grammar import automaton
from coordexp.inference.grammar.label_grammar import LabelGrammar
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.runtime.errors import DataError

LABELS = ["cat", "cat food", "black cat", 'a "b"', "cat"]  # prefixes, an escape, and a repetition


@pytest.fixture(scope="module")
def grammar(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = Vocabulary(AutoTokenizer.from_pretrained(tiny_model))
    return LabelGrammar(tokenizer, automaton.build(PromptStyle(), ("bbox_2d",), 20), LABELS)


def texts_until_a_slot(grammar, index, tokens=()):
    """Every text from a node to the next coordinate or the end of the answer."""
    node = grammar.node(index)
    if node.kind != "choice":
        return {grammar.vocabulary._backend.decode(list(tokens), skip_special_tokens=False)}
    return set().union(*(texts_until_a_slot(grammar, after, (*tokens, token)) for token, after in node.follow.items()))


def test_an_answer_begins_with_any_of_the_labels_or_ends_empty(grammar):
    texts = texts_until_a_slot(grammar, grammar.start)
    written = {text.split('"desc": "')[1].rsplit('", "bbox_2d', 1)[0] for text in texts if "desc" in text}
    assert written == {"cat", "cat food", "black cat", 'a \\"b\\"'}
    assert [text for text in texts if "desc" not in text] == ['{"objects": []}']


def test_labels_are_tokenized_as_in_training(grammar):
    index = grammar.start
    for token in grammar.vocabulary.tokenize('{"objects": [{"desc": "cat food", "bbox_2d": ['):
        index = grammar.node(index).follow[token]
    assert grammar.node(index).kind == "slot"


@pytest.mark.parametrize("labels", [[], ["cat", ""], ["  "]], ids=["none", "empty", "blank"])
def test_missing_and_blank_labels_are_refused(grammar, labels):
    with pytest.raises(DataError, match="categories"):
        LabelGrammar(grammar.vocabulary, grammar.automaton, labels)
