"""The grammar of two tokenizers: every answer of training is a path, and no other text is."""

from __future__ import annotations

import random

import msgspec
import pytest

from coordexp.answers.formats import format_of
from coordexp.answers.render import PromptStyle, render_answer
from coordexp.inference.grammar import automaton
from coordexp.inference.grammar.token_bytes import Vocabulary
from coordexp.inference.grammar.token_grammar import compile_grammar
from coordexp.modeling.vocab import coord_ids
from coordexp.records import WILDCARD_TOKEN, Object, coord_token, coord_tokens
from coordexp.runtime.errors import ConfigError, DataError

STYLES = [
    PromptStyle(object_field_order=order, json_format=spacing)
    for order in ("desc_first", "geometry_first")
    for spacing in ("standard", "compact")
]
COMPACT = [PromptStyle(answer_format=name) for name in ("grouped", "box_tokens")]
WORDS = ["cat", "black cat", "bun (food)", "St. Bernard dog", "café 3.5%", "漢字", "🐈 x", "it's", "é", "2%milk"]
SIGNS = [
    'a "q" \\ b',
    "(odd) start",
    "ends!",
    "x,y",
    "tab\tx",
    " lead",
    "trail ",
    "#1",
    "...",
    '"',
    "\x7f",
    "a\x01b",
    "'s",
    "\u3000wide",
    "\u00a0 \u2003x\u3000",
    "\u3001\u2010\u00a1",
]
SPACES = [chr(n) for n in range(0x80, 0x10000) if chr(n).isspace()]
BLANKS = [*SPACES, "".join(SPACES), "\u3000 \t\u00a0"]
LABELS = [*WORDS, *SIGNS, 'a]}, {"desc": "b']


@pytest.fixture(scope="module")
def vocabulary(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    vocabulary = Vocabulary(tokenizer)
    vocabulary.coords = range(coord_ids(tokenizer).start, coord_ids(tokenizer).end + 1)
    return vocabulary


@pytest.fixture(scope="module")
def published():
    """The published Qwen3 vocabulary followed by the coordinate tokens."""
    from modeling_helpers import qwen3_tokenizer
    from tokenizers import AddedToken

    tokenizer = qwen3_tokenizer()
    added = [WILDCARD_TOKEN, *coord_tokens()]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    vocabulary = Vocabulary(tokenizer)
    vocabulary.coords = range(151670, 152670)
    return vocabulary


def make_object(desc: str, poly: int = 0) -> Object:
    """A box, or a polygon of `poly` points."""
    tokens = [coord_token(k) for k in range(2 * poly or 4)]
    return Object(desc, 1, [0.0] * len(tokens), **({"poly": tokens} if poly else {"bbox_2d": tokens}))


@pytest.mark.parametrize("labels", [None, LABELS], ids=["open", "labels"])
@pytest.mark.parametrize("style", [*STYLES, *COMPACT])
def test_every_rendered_answer_is_a_path(vocabulary, style, labels):
    grammar = compile_grammar(vocabulary, style, kinds=("bbox_2d", "poly"), labels=labels)
    assert grammar.admits(vocabulary.tokenize(render_answer([], style)), vocabulary.coords)
    for label in LABELS:
        for objects in (
            [make_object(label)],
            [make_object("cat"), make_object(label, 3)],
            [make_object(label, 20), make_object(label), make_object("dog" if labels is None else "cat")],
        ):
            assert grammar.admits(vocabulary.tokenize(render_answer(objects, style)), vocabulary.coords), label


@pytest.mark.parametrize("labels", [None, LABELS], ids=["open", "labels"])
@pytest.mark.parametrize("style", [STYLES[0], STYLES[3], *COMPACT])
def test_every_rendered_answer_is_a_path_in_the_published_vocabulary(published, style, labels):
    grammar = compile_grammar(published, style, kinds=("bbox_2d", "poly"), labels=labels)
    assert grammar.admits(published.tokenize(render_answer([], style)), published.coords)
    for label in LABELS:
        objects = [make_object("cat"), make_object(label, 3), make_object(label)]
        assert grammar.admits(published.tokenize(render_answer(objects, style)), published.coords), label


@pytest.mark.parametrize("style", STYLES)
def test_text_that_the_parser_rejects_is_not_a_path(vocabulary, style):
    grammar = compile_grammar(vocabulary, style, kinds=("bbox_2d", "poly"), poly_max_points=5)
    good = render_answer([make_object("cat"), make_object("dog", 3)], style)
    assert grammar.admits(vocabulary.tokenize(good), vocabulary.coords)
    bad = [
        good[:-1],
        good + "}",
        good + " ",
        render_answer([make_object(" ")], style),
        *(render_answer([make_object(blank)], style) for blank in BLANKS),
        render_answer([make_object("cat", 2)], style),
        render_answer([make_object("cat", 6)], style),
        good.replace("<|coord_3|>", "3"),
        good.replace("<|coord_3|>", "<|coord_*|>"),
        good.replace("cat", "c<|coord_3|>t"),
        good.replace("cat", "c<|im_end|>t"),
        good.replace("cat", "c\nt"),
        good.replace("cat", "c\\ud800t"),
        good.replace('"desc"', '"name"', 1),
        "{}",
        "",
    ]
    for text in bad:
        assert not grammar.admits(vocabulary.tokenize(text), vocabulary.coords), text


@pytest.mark.parametrize("style", COMPACT, ids=lambda style: style.answer_format)
def test_malformed_text_in_a_compact_format_is_not_a_path(vocabulary, style):
    grammar = compile_grammar(vocabulary, style, kinds=("bbox_2d", "poly"), poly_max_points=5)
    good = render_answer([make_object("cat"), make_object("cat"), make_object("dog", 3)], style)
    assert grammar.admits(vocabulary.tokenize(good), vocabulary.coords)
    for text in (
        good + "}",
        good + " ",
        good.replace("cat", " "),
        render_answer([make_object("cat", 6)], style),
        good.replace("<|coord_3|>", "3"),
        good.replace("<|coord_3|>", ""),
        good.replace("cat", "c<|box_start|>t"),
        good.replace("cat", "c<t") if style.answer_format == "box_tokens" else good.replace(":", "~"),
    ):
        assert not grammar.admits(vocabulary.tokenize(text), vocabulary.coords), text


@pytest.mark.parametrize("labels", [None, LABELS], ids=["open", "labels"])
@pytest.mark.parametrize("style", [*STYLES, *COMPACT])
def test_random_walks_parse(vocabulary, style, labels):
    """Any path to the end, however unlikely, is an answer that the parser accepts without problems."""
    grammar = compile_grammar(vocabulary, style, kinds=("bbox_2d", "poly"), labels=labels, poly_max_points=4)
    rng = random.Random(1)
    tokenizer = vocabulary._backend
    objects = 0
    for _ in range(60):
        index, tokens, box = grammar.start, [], []
        while (node := grammar.node(index)).kind != "end":
            if node.kind == "slot":
                box = [] if node.role in automaton.FIRST_ROLES else box
                low = box[-2] + 1 if node.role in ("x2", "y2") else 0
                box.append(rng.randint(low, 998 if node.role in ("x1", "y1") else 999))
                token = vocabulary.coords[box[-1]]
            elif node.kind == "choice":
                token = rng.choice(sorted(node.follow))
            elif rng.random() < 0.4 and node.finish:
                token = rng.choice(sorted(node.finish))
            else:
                token = int(rng.choice(node.allowed.nonzero()[0]))
            tokens.append(token)
            index = node.after(token)
        text = tokenizer.decode(tokens, skip_special_tokens=False)
        parsed = format_of(style).parse(text)
        assert parsed.complete and parsed.problems == {}, text
        assert "\ufffd" not in text
        objects += len(parsed.objects)
    assert objects > 20


@pytest.mark.parametrize("name", ["vocabulary", "published"])
@pytest.mark.parametrize("style", [STYLES[0], *COMPACT], ids=lambda style: style.answer_format)
def test_syntax_needs_no_choices(name, style, request):
    """Only the tokens of descriptions, the coordinates and the end of the answer are open choices."""
    vocabulary = request.getfixturevalue(name)
    grammar = compile_grammar(vocabulary, style)
    tokens = vocabulary.tokenize(render_answer([make_object("cat")] * 3, style) + (grammar.format.end_token or ""))
    index, free = grammar.start, 0
    for token in tokens:
        node = grammar.node(index)
        free += node.forced is None and node.draft != token
        index = node.after(token)
    descriptions = len(vocabulary.tokenize("cat")) + 1
    described = 1 if grammar.format.shares_descriptions else 3
    assert free == described * descriptions + 3 * 4 + 1


@pytest.mark.parametrize("name", ["vocabulary", "published"])
@pytest.mark.parametrize("style", [*STYLES, *COMPACT])
def test_integers_instead_of_coordinate_tokens(name, style, request):
    vocabulary = request.getfixturevalue(name)
    style = msgspec.structs.replace(style, coordinates="integer")
    grammar = compile_grammar(vocabulary, style, kinds=("bbox_2d", "poly"))
    tokens = [coord_token(k) for k in (0, 7, 42, 999)]
    objects = [Object("a cat", 1, [0.0] * 4, bbox_2d=tokens), Object("dog (big)", 1, [0.0] * 8, poly=tokens * 2)]
    for count in range(3):
        text = render_answer(objects[:count], style)
        assert grammar.admits(vocabulary.tokenize(text), range(0)), text
    for number in ("1000", "042", "-1", "<|coord_42|>", ""):
        assert not grammar.admits(vocabulary.tokenize(text.replace("42", number)), range(0))
    with pytest.raises(ConfigError, match="restrict_labels"):
        compile_grammar(vocabulary, style, labels=["cat"])


def test_an_empty_list_of_labels_is_an_error(vocabulary):
    with pytest.raises(DataError, match="labels"):
        compile_grammar(vocabulary, STYLES[0], labels=[])


MARKS = "!#$%&'()*+,-./:;<=>?@[]^_`{|}~\"\\"
OPENINGS = [start + rest for start in MARKS for rest in ("", " x", "3", "a)", "] b", ":)", ">", "猫")]


@pytest.mark.parametrize("style", [*STYLES, *COMPACT])
@pytest.mark.parametrize("name", ["vocabulary", "published"])
def test_descriptions_may_begin_with_punctuation(name, style, request):
    """In compact JSON a tokenizer merges the opening quote with what precedes it, or with what follows."""
    vocabulary = request.getfixturevalue(name)
    grammar = compile_grammar(vocabulary, style)
    for desc in OPENINGS:
        text = render_answer([make_object(desc), make_object("cat"), make_object(desc)], style)
        assert grammar.admits(vocabulary.tokenize(text), vocabulary.coords), desc
