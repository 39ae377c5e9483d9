"""Settings in YAML (or JSON) files that may extend each other, checked against a struct of the keys there are.

`extends` names one file or a list, relative to the file that says so. Maps merge key by key and the
later file wins; lists and single values are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import yaml

from coordexp.runtime.errors import ConfigError, located, nearest

Adjust = Callable[[dict[str, Any], Path], None]


def read_extended(path: str | Path, adjust: Adjust | None = None, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The map of a file over those that it extends; ConfigError when one is missing or no map, or goes in a circle.

    `adjust` gets each file's own map and path before the maps are merged, to change the map in place:
    relative paths are made absolute where they are written.
    """
    path = Path(path).resolve()
    if path in _chain:
        circle = " -> ".join(p.name for p in (*_chain, path))
        raise ConfigError(located(f"`extends` goes in a circle: {circle}", file=path))
    raw = _read_map(path)
    if adjust is not None:
        adjust(raw, path)
    parents = raw.pop("extends", None) or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, read_extended(path.parent / parent, adjust, (*_chain, path)))
    return merge(merged, raw)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge: maps merge key by key, everything else in `over` replaces."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def convert(value: Mapping[str, Any], kind: type, path: str | Path, field: str = "") -> Any:
    """`value` as the struct `kind`; an unknown key is a ConfigError with the nearest name, at any depth.

    `path` and `field` say where the map stands.
    """
    _reject_unknown(value, kind, path, field)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(located(str(error).replace("$", field) if field else str(error), file=path)) from error


def _read_map(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(located("file not found", file=path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(located(f"not YAML: {error}", file=path)) from error
    if not isinstance(raw, dict):
        raise ConfigError(located("not a map of settings", file=path, found=type(raw).__name__))
    return raw


def _reject_unknown(value: Any, kind: Any, path: str | Path, field: str) -> None:
    if not isinstance(value, Mapping):
        return
    for option in _alternatives(kind):
        if get_origin(option) is dict:
            for key, inner in value.items():
                _reject_unknown(inner, get_args(option)[1], path, _below(field, key))
        elif isinstance(option, type) and issubclass(option, msgspec.Struct):
            fields = {f.name: f.type for f in msgspec.structs.fields(option)}
            for key, inner in value.items():
                if key not in fields:
                    problem = f"unknown key{nearest(key, fields)}"
                    raise ConfigError(located(problem, file=path, field=_below(field, key)))
                _reject_unknown(inner, fields[key], path, _below(field, key))


def _alternatives(kind: Any) -> Iterator[Any]:
    """The members of a union, or the type itself."""
    yield from (kind,) if isinstance(kind, type) or get_origin(kind) is dict else get_args(kind)


def _below(field: str, key: Any) -> str:
    return f"{field}.{key}" if field else str(key)
