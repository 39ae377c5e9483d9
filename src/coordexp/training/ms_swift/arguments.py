"""A recipe's ms-swift arguments against ms-swift's own classes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import msgspec
from swift.arguments import SftArguments

from coordexp.runtime.errors import ConfigError, located, nearest


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` in the types that ms-swift declares; ConfigError for an unknown name or a value of another kind.

    Numbers written as text are read (YAML takes `1e-4` for text).
    """
    kinds = typing.get_type_hints(SftArguments)
    for key in arguments:
        if key not in kinds:
            raise ConfigError(located(f"ms-swift has no such argument{nearest(key, kinds)}", field=key))
    return {key: _as(value, kinds[key], key) for key, value in arguments.items()}


def _as(value: Any, kind: Any, key: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        problem = f"not what ms-swift takes: {error}"
        raise ConfigError(located(problem, field=key, found=value)) from error
    except TypeError:  # a kind that msgspec does not know; ms-swift checks these itself
        return value
