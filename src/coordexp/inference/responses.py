"""One response of another engine: vLLM, SGLang, transformers, or any text.

| format                        | text                           | finish reason            |
|-------------------------------|--------------------------------|--------------------------|
| OpenAI chat completion        | `choices[0].message.content`   | `choices[0].finish_reason` |
| OpenAI completion             | `choices[0].text`              | `choices[0].finish_reason` |
| OpenAI batch output           | in `response.body`, one of both | in `response.body`      |
| SGLang `/generate`            | `text`                         | `meta_info.finish_reason.type` |
| transformers, or your own     | `generated_text` or `text`     | `finish_reason`          |

A text may be a string or a list of parts, each a string or `{"type": "text", "text": ...}`. A response in one of these
formats without a text is a failed request: its `error` is that of the server.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from coordexp.inference.coordinates import DecodedCoordinate, coordinate_of
from coordexp.records import COORD_TOKEN
from coordexp.runtime.errors import DataError, located

Token = tuple[bytes, float]  # its bytes and its natural log probability
ENVELOPE = ("choices", "response", "error", "text", "generated_text", "meta_info", "detail")
MAX_LOGPROB = 1e-3  # rounding in an engine may exceed 0
MAX_ERROR = 300  # characters of a server's error that are shown


class Response(NamedTuple):
    """One response; `finish`, `image_id` and `tokens` only if the engine returned them.

    error: the server's error if the request failed, and then `text` is empty.
    invalid_logprobs: the response has log probabilities, but they cannot be used.
    coordinates: of the coordinate tokens in order, if a server of `coordexp serve` reported all of them.
    """

    text: str
    finish: Literal["stop", "length"] | None
    image_id: str | None
    tokens: list[Token]
    error: str | None = None
    invalid_logprobs: bool = False
    coordinates: tuple[DecodedCoordinate, ...] = ()


def parse_response(value: Any, where: str = "response") -> Response:
    """One decoded JSON line, in any format of the module's table; DataError naming `where` for any other."""
    if isinstance(value, str):
        return Response(value, None, None, [])
    if not isinstance(value, dict):
        raise DataError(located("not a response", file=where, expected="a JSON object", found=type(value).__name__))
    fix = "see docs/serving.md for the supported formats"
    if not any(name in value for name in ENVELOPE):
        raise DataError(located("the response has no text", file=where, found=sorted(value), fix=fix))
    image_id = value.get("custom_id", value.get("image_id"))
    if image_id is not None and (isinstance(image_id, bool) or not isinstance(image_id, (str, int))):
        problem = "the id of a response is neither text nor an integer"
        raise DataError(located(problem, file=where, field="custom_id", found=image_id, fix=fix))
    image_id = None if image_id is None else str(image_id)
    outer = value.get("response")
    body = _map(outer.get("body") if isinstance(outer, dict) else value)
    choice = _first_choice(body)
    text = _text(_map(choice.get("message")).get("content", choice.get("text")) if "choices" in body else _plain(body))
    if text is None:
        return Response("", None, image_id, [], error=_server_error(choice, body, _map(outer), value))
    reason = choice.get("finish_reason") if "choices" in body else _plain_reason(body)
    finish = None if not isinstance(reason, str) else "length" if reason == "length" else "stop"
    shown = choice.get("logprobs")
    tokens = _tokens(shown, text)
    coordinates = _coordinates(shown) if tokens else ()
    return Response(text, finish, image_id, tokens or [], None, tokens is None, coordinates)


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    return _map(choices[0]) if isinstance(choices, list) and choices else {}


def _plain(body: dict[str, Any]) -> Any:
    """The text of a response without choices; a generated chat is represented by its last message."""
    text = body.get("generated_text", body.get("text"))
    if isinstance(text, list) and text and "role" in _map(text[-1]):
        return text[-1].get("content")
    return text


def _plain_reason(body: dict[str, Any]) -> Any:
    reason = _map(body.get("meta_info")).get("finish_reason", body.get("finish_reason"))
    return reason.get("type") if isinstance(reason, dict) else reason


def _text(content: Any) -> str | None:
    """A text, or the texts of a list of parts joined; None if there is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part if isinstance(part, str) else _map(part).get("text") for part in content]
    texts = [text for text in texts if isinstance(text, str)]
    return "".join(texts) if texts else None


def _server_error(choice: dict[str, Any], body: dict[str, Any], outer: dict[str, Any], line: dict[str, Any]) -> str:
    """The error message in a failed response, shortened."""
    message = _map(choice.get("message"))
    said = [message.get("refusal"), choice.get("error"), body.get("error"), body.get("detail"), body.get("message")]
    said += [outer.get("error"), line.get("error")]
    error = next((value for value in said if value), None)
    error = _map(error).get("message") or error
    if error is None:
        reason = choice.get("finish_reason")
        error = f"no text, finish reason {reason}" if reason else "no text"
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    status = outer.get("status_code")
    text = " ".join(text.split())
    text = text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + " ..."
    return f"status {status}: {text}" if isinstance(status, int) and status != 200 else text


def _tokens(logprobs: Any, text: str) -> list[Token] | None:
    """Tokens of a chat completion's or a completion's `logprobs`, [] without any; None if they cannot be used.

    The field `bytes` is used if all of them together spell the text: some engines only encode the displayed token.
    """
    if not logprobs:
        return []
    content, names, values = (_map(logprobs).get(key) for key in ("content", "tokens", "token_logprobs"))
    if not (content or names or values):
        return [] if isinstance(logprobs, dict) else None
    if content:
        items = [_map(item) for item in content] if isinstance(content, list) else []
        names, values = [item.get("token") for item in items], [item.get("logprob") for item in items]
        spelled = [_bytes(item.get("bytes")) for item in items]
        if all(spelled) and b"".join(spelled).startswith(text.encode()):  # type: ignore[arg-type]
            return _paired(spelled, values)
    elif isinstance(values, list) and values and values[0] is None:
        values = [0.0, *values[1:]]  # a completion has no log probability for its first token if the prompt is empty
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return _paired([name.encode() for name in names], values)


def _coordinates(logprobs: Any) -> tuple[DecodedCoordinate, ...]:
    """The coordinate of each coordinate token in a chat completion's `logprobs`; () if one of them has none."""
    found = []
    content = _map(logprobs).get("content")
    for item in map(_map, content if isinstance(content, list) else ()):
        token = item.get("token")
        if bin_token := isinstance(token, str) and COORD_TOKEN.fullmatch(token):
            beside = item.get("top_logprobs")
            reported = [_map(entry).get("logprob") for entry in beside] if isinstance(beside, list) else []
            values = [value for value in reported if isinstance(value, (int, float))]
            found.append(coordinate_of(int(bin_token[1]), float(item["logprob"]), values))
    return tuple(coordinate for coordinate in found if coordinate) if all(found) else ()


def _bytes(value: Any) -> bytes | None:
    try:
        return bytes(value) if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None


def _paired(names: Sequence[Any], values: Any) -> list[Token] | None:
    """Tokens with their log probabilities; None if a value is missing or not the log of a probability."""
    if not names or not isinstance(values, list) or len(values) != len(names):
        return None
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    valid = numbers and all(-sys.float_info.max <= v <= MAX_LOGPROB for v in values)  # an int may exceed any float
    return list(zip(names, map(float, values), strict=True)) if valid else None
