"""Keeps secrets out of configurations, because jobs, manifests and reports record these."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coordexp.runtime.errors import ConfigError, located

# Words of a key by which its value is a secret, and keys with such a word that are not.
_SECRET_KEY = re.compile(
    r"(^|[_.-])(token|passwords?|passwd|passphrase|secrets?|credentials?|api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|"
    r"auth(orization)?)$",
    re.IGNORECASE,
)
_SECRET_PREFIX = re.compile(r"(^|[_.-])(secret|password|credential)[_.-]", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"(^|_)(eos|bos|pad|unk|cls|sep|mask|image|video|stop|special|coord)_token$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}\b|\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[A-Z0-9]{16}\b"
    r"|://[^/\s:@]+:[^/\s@]+@"
)


def refuse_secrets(values: Any, file: str | Path, field: str = "") -> None:
    """ConfigError, which does not repeat the value, if `values` contain a secret at any depth."""
    for name in _secrets(values, field):
        fix = "remove it, and set an environment variable instead: HF_TOKEN, MODELSCOPE_API_TOKEN, or that of the tool"
        problem = "a secret must not be set here: it would be stored with the results and in logs"
        raise ConfigError(located(problem, file=file, field=name, fix=fix))


def find_secret(text: str) -> bool:
    """Whether a text contains what looks like an access token, or a password in a URL."""
    return _SECRET_VALUE.search(text) is not None


def is_secret(key: str) -> bool:
    """Whether the value of a key of this name is a secret."""
    return bool(_SECRET_KEY.search(key) or _SECRET_PREFIX.search(key)) and not _SPECIAL_TOKEN.search(key)


def _secrets(value: Any, field: str) -> Iterator[str]:
    """The names of fields that hold a secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{field}.{key}" if field else str(key)
            if is_secret(str(key)) and inner and isinstance(inner, str | int | float) and not isinstance(inner, bool):
                yield name
            else:
                yield from _secrets(inner, name)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _secrets(inner, f"{field}[{number}]")
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        yield field
