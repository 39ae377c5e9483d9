"""The bytes of tokens are those that the tokenizer decodes them to."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.runtime.errors import ModelError


def test_bytes_equal_the_decoded_tokens(predictor):
    tokenizer, vocabulary = predictor.processor.tokenizer, predictor.vocabulary
    for token, data in vocabulary.spelling.items():
        assert tokenizer.decode([token]) == data.decode(errors="replace")
    text = 'a "cat" \\ 漢字 🐈'
    assert b"".join(vocabulary.spelling[token] for token in vocabulary.tokenize(text)).decode() == text


def test_added_tokens_are_left_out(predictor):
    ids = predictor.ids
    assert not {ids.start, ids.end, ids.wildcard} & set(predictor.vocabulary.spelling)
    assert predictor.vocabulary.size > ids.end


def test_plain_tokens_are_allowed_anywhere_in_a_json_string(predictor):
    vocabulary = predictor.vocabulary
    for token in vocabulary.plain:
        text = vocabulary.spelling[token].decode()
        assert text.strip() and not set(text) & {'"', "\\", "\n", "\t"}
    others = {token for token, _ in vocabulary.others}
    assert others.isdisjoint(vocabulary.plain) and others | set(vocabulary.plain) == set(vocabulary.spelling)


def test_other_tokenizers_are_rejected():
    with pytest.raises(ModelError, match="not byte-level"):
        Vocabulary(Tokenizer(models.WordLevel({"漢字": 0}, unk_token="漢字")))
