"""The chat template of a checkpoint is rendered once, within limits, and gives the prompt of transformers."""

import time
from types import SimpleNamespace

import pytest
from transformers import AutoProcessor

from coordexp.answers.render import PromptStyle, hf_chat, user_text
from coordexp.modeling import chat_template
from coordexp.modeling.chat_template import answer_prefix, prompt_frame
from coordexp.runtime.errors import ModelError

THINKING = "{% for m in messages %}{{ m.content[1].text }}{% endfor %}<|im_start|>assistant\n<think>\n"
SWITCHED = THINKING + "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}"
LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


def processor(template):
    return SimpleNamespace(chat_template=template, tokenizer=SimpleNamespace(special_tokens_map={"eos_token": "</s>"}))


def test_the_prompt_is_that_of_transformers(tiny_model):
    loaded, style = AutoProcessor.from_pretrained(tiny_model), PromptStyle()
    before, after = prompt_frame(loaded)
    for categories in (None, ["cat", "Ü"]):
        expected = loaded.apply_chat_template(hf_chat(style, categories), add_generation_prompt=True, tokenize=False)
        assert before + user_text(style, categories) + after == expected


@pytest.mark.parametrize("template", [THINKING, SWITCHED], ids=["always", "by default"])
def test_a_template_that_lets_the_model_reason_gives_an_empty_block_of_reasoning(template):
    frame = ("", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert prompt_frame(processor(template)) == frame
    assert answer_prefix(processor(template)) == "<think>\n\n</think>\n\n"


def test_the_answer_follows_the_prompt_of_other_templates_at_once():
    template = "{% for m in messages %}{{ m.content[1].text }}{% endfor %}<|im_start|>assistant\n"
    assert answer_prefix(processor(template)) == ""


@pytest.mark.parametrize(
    "template",
    [
        LOOPS,
        "{{ 'x' * 10**10 }}",
        "{{ (10**10)**(10**8) }}",
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    ],
)
def test_a_template_that_does_not_end_or_needs_too_much_memory_is_refused(monkeypatch, template):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"chat_template: (the chat template does not finish|cannot render)"):
        prompt_frame(processor(template))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ({"other": "x"}, "no chat template"),
        ("x" * (1 << 21), "too long"),
        ("{% for", "cannot render the chat template: TemplateSyntaxError"),
        ("{{ absent.field.field }}", "UndefinedError"),
        ("{{ raise_exception('no images') }}", "TemplateError: no images"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages[0].content[1].text | upper }}", "changes the text"),
        ("a prompt without the text", "changes the text"),
    ],
)
def test_a_template_that_does_not_give_a_prompt_is_refused(template, message):
    with pytest.raises(ModelError, match=message):
        prompt_frame(processor(template))


def test_special_tokens_and_the_blocks_of_training_are_known():
    template = "{{ eos_token }}{% generation %}{{ messages[0].content[1].text }}{% endgeneration %}{% break %}"
    template = "{% for m in messages %}" + template + "{% endfor %}{{ strftime_now('%Y')[:0] }}{{ [1] | tojson }}"
    assert prompt_frame(processor({"default": template})) == ("</s>", "[1]")
