"""Validation of a recipe's ms-swift arguments against ms-swift's own argument classes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import msgspec
from swift.arguments import SftArguments

from coordexp.runtime.errors import ConfigError, located, nearest


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` converted to the types that ms-swift declares; ConfigError for an unknown name or a wrong type.

    Text is converted to numbers, because YAML reads `1e-4` as text.
    """
    types = typing.get_type_hints(SftArguments)
    for key in arguments:
        if key not in types:
            raise ConfigError(located(f"ms-swift has no such argument{nearest(key, types)}", field=key))
    return {key: _convert(value, types[key], key) for key, value in arguments.items()}


def _convert(value: Any, kind: Any, key: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        problem = f"wrong type for this ms-swift argument: {error}"
        raise ConfigError(located(problem, field=key, found=value)) from error
    except TypeError:  # a type that msgspec does not support; ms-swift checks it
        return value
