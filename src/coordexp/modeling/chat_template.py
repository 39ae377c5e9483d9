"""Renders the chat template of a checkpoint, which is a program, within limits of time, memory and length."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from coordexp.answers.render import PromptStyle, hf_chat
from coordexp.modeling import render_chat_template
from coordexp.runtime.errors import ModelError, located

MAX_TEMPLATE = 1 << 20  # characters; the longest published ones have about 20,000
CPU_SECONDS, WALL_SECONDS = 10, 120  # of a process that needs a fifth of a second
OPEN_REASONING, EMPTY_REASONING = "<think>", "<think>\n\n</think>\n\n"  # as in the templates of Qwen3 and later
_PROBES = ("Detect every object.", 'List "x" & <y>.\nÜ: {z}')
_FIX = "replace the template by that of the model family (chat_template.jinja, or chat_template in its JSON files)"


def prompt_frame(processor: Any) -> tuple[str, str]:
    """What the chat template of a Hugging Face processor puts before and after the text of a prompt.

    The prompt is one message of the user with an image and the text, up to where the answer starts: answers have no
    reasoning, so a template that lets the model reason gives an empty block of it. ModelError for a template that does
    not render, exceeds the limits, or changes the text.
    """
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise ModelError(located("the checkpoint has no chat template", field="chat_template", fix=_FIX))
    tokens = {name: str(value) for name, value in processor.tokenizer.special_tokens_map.items()}
    return _frame(template, json.dumps(tokens, sort_keys=True))


def answer_prefix(processor: Any) -> str:
    """What the frame has between the start of the answer's turn and the answer: an empty block of reasoning or ""."""
    return EMPTY_REASONING if prompt_frame(processor)[1].endswith(EMPTY_REASONING) else ""


@lru_cache(maxsize=16)
def _frame(template: str, tokens: str) -> tuple[str, str]:
    if len(template) > MAX_TEMPLATE:
        found = f"{len(template)} characters"
        raise ModelError(located("the chat template is too long", expected=f"<= {MAX_TEMPLATE}", found=found, fix=_FIX))
    frames = set()
    for probe, rendered in zip(_PROBES, _render(template, json.loads(tokens)), strict=True):
        before, _, after = rendered.partition(probe)
        kept = before + probe + after == rendered and probe not in after
        frames.add((before, _without_reasoning(after)) if kept else None)
    if len(frames) != 1 or None in frames:
        raise ModelError(located("the chat template changes the text of a message", field="chat_template", fix=_FIX))
    return frames.pop()


def _without_reasoning(after: str) -> str:
    """`after` with an empty block of reasoning if a template always lets the model reason."""
    stripped = after.rstrip()
    return stripped.removesuffix(OPEN_REASONING) + EMPTY_REASONING if stripped.endswith(OPEN_REASONING) else after


def _render(template: str, tokens: Mapping[str, str]) -> list[str]:
    """The template rendered for a prompt with each probe as its text."""
    chats = [hf_chat(PromptStyle(user_prompt=text)) for text in _PROBES]
    job = {"template": template, "tokens": tokens, "chats": chats, "cpu_seconds": CPU_SECONDS}
    command = [sys.executable, "-P", "-m", render_chat_template.__name__]
    problem = "the chat template does not finish, or needs too much memory"
    data = json.dumps(job).encode()
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=WALL_SECONDS, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise ModelError(located(problem, field="chat_template", fix=_FIX)) from error
    if done.returncode > 0:  # a negative one is the signal of a limit
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        problem = f"cannot render the chat template: {reason}"
    if "error" in answer:
        problem = f"cannot render the chat template: {answer['error']}"
    if "texts" not in answer:
        raise ModelError(located(problem, field="chat_template", fix=_FIX))
    return answer["texts"]
