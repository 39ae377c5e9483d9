"""A process that renders a chat template: reads a job from stdin as JSON, writes the texts to stdout.

The environment of the template is that of `transformers.utils.chat_template_utils`. A template that exceeds the limits
ends this process.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MEMORY = 1 << 30
MAX_TEXT = 1 << 20  # characters of a rendered prompt


def render(template: str, tokens: Mapping[str, str], chats: list[list[dict[str, Any]]]) -> list[str]:
    """The template rendered for each chat, up to where the answer starts."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `generation`, which marks the answer in training and changes nothing here."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            """The statements of the block."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
    compiled = environment.from_string(template)
    texts = []
    for chat in chats:
        pieces, length = [], 0
        settings = {"tools": [], "documents": None, "add_generation_prompt": True, "enable_thinking": False}
        for piece in compiled.generate(messages=chat, **settings, **tokens):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_TEXT:
                raise ValueError(f"the rendered text is longer than {MAX_TEXT} characters")
        texts.append("".join(pieces))
    return texts


def main() -> None:
    """Render the job on stdin."""
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = {"texts": render(job["template"], job["tokens"], job["chats"])}
    except Exception as error:  # whatever a template does
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
