"""The corpus of the compact tokenizer is fixed and makes frequent names single tokens."""

from coordexp.modeling.qwen_tokenizer import compact_tokenizer
from coordexp.modeling.tokenizer_corpus import COLOURS, SHAPES, lines


def test_every_colour_and_shape_occurs():
    words = " ".join(lines()).split()
    assert lines() == lines()
    assert all(f"{name}" in " ".join(words) for name in [*COLOURS.split(), *SHAPES.split()])


def test_an_empty_answer_and_frequent_names_take_few_tokens():
    tokenizer = compact_tokenizer()
    assert len(tokenizer.encode('{"objects": []}').ids) <= 4
    assert all(len(tokenizer.encode(f" {name}").ids) == 1 for name in ("dog", "red", "square"))
