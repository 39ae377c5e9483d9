"""Configuration files that may extend each other, checked against the structs that declare their options.

`extends` names one file or a list of files, relative to the file that contains it. Maps merge key by key, and the later
file wins; lists and scalars are replaced.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import yaml

from coordexp.runtime.errors import ConfigError, located, nearest
from coordexp.runtime.registry import Names

Adjust = Callable[[dict[str, Any], Path], None]
NOT_FINITE = "expected a finite number"
SCALARS = (str, bool, int, float)


def choice(registry: Names, description: str | None = None) -> Any:
    """Type of an option whose values are the names in `registry`, for the annotation of a struct field.

    The names are looked up when a value is checked or a schema is generated, so plug-ins may add some.

    >>> from coordexp.runtime.registry import Names
    >>> SHAPES = Registry("shape")
    >>> class Drawing(msgspec.Struct):
    ...     shape: choice(SHAPES, "what to draw") = "square"
    """
    meta = msgspec.Meta(
        description=description, extra={"registry": registry}, extra_json_schema={"x-registry": registry.kind}
    )
    return Annotated[str, meta]


def read_extended(path: str | Path, adjust: Adjust | None = None, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The map in a file, merged over those that it extends; ConfigError if a file is missing, invalid or circular.

    `adjust` is called with each file's own map and path before the maps are merged, and may change the map in place
    (to make relative paths absolute, for example).
    """
    path = Path(path).resolve()
    if path in _chain:
        cycle = " -> ".join(p.name for p in (*_chain, path))
        raise ConfigError(located(f"circular `extends`: {cycle}", file=path))
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


def convert(value: Mapping[str, Any], kind: type, path: str | Path | None = None, field: str = "") -> Any:
    """`value` as the struct `kind`, checked as by `checked`; ConfigError that lists every problem."""
    return msgspec.convert(checked(value, kind, path, field), kind)


def checked(value: Mapping[str, Any], kind: type, path: str | Path | None = None, field: str = "") -> dict[str, Any]:
    """`value` itself, without defaults filled in, after a check that it can be converted to the struct `kind`.

    ConfigError that lists every problem with its full key, and the nearest known name for an unknown key or choice.
    Text is converted where it reads as the expected type ("64" for an integer), as values on a command line are text.
    `path` is the file that `value` came from and `field` the key at which it is found there, for messages only.
    """
    problems: list[str] = []

    def report(where: str, problem: str, **facts: Any) -> None:
        problems.append(located(problem, file=path, field=where or None, **facts))

    result = _check(value, kind, field, report)
    if problems:
        raise ConfigError("\n".join(problems))
    return result


def check_finite(value: Any, path: str | Path | None = None, field: str = "") -> None:
    """ConfigError that lists every NaN and infinite number in `value`, at any depth."""
    found = list(_non_finite(value, field))
    if found:
        raise ConfigError("\n".join(located(NOT_FINITE, file=path, field=key, found=str(n)) for key, n in found))


class Variants(NamedTuple):
    """Maps whose keys depend on the value of one of them, `key`; `structs` declares the other keys by that value."""

    key: str
    structs: Callable[[], Mapping[str, type]]
    description: str


def variants(key: str, structs: Callable[[], Mapping[str, type]], description: str) -> Any:
    """Type of a map that is one of several `Variants`; a value stays a plain map. `description` is that of `key`."""
    return Annotated[dict[str, Any], msgspec.Meta(extra={"variants": Variants(key, structs, description)})]


def variants_of(kind: Any) -> Variants | None:
    """The `Variants` of a type made by `variants`."""
    return next((meta.extra["variants"] for meta in unwrap(kind)[1] if meta.extra and "variants" in meta.extra), None)


def declared(struct: type[msgspec.Struct], name: str) -> Any:
    """Type of a field with its bounds and description, to declare the same option in another struct."""
    return next(field.type for field in msgspec.structs.fields(struct) if field.name == name)


def unwrap(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """A type without its `Annotated` layers, and their metadata."""
    metas: list[msgspec.Meta] = []
    while get_origin(kind) is Annotated:
        kind, *layers = get_args(kind)
        metas += [meta for meta in layers if isinstance(meta, msgspec.Meta)]
    return kind, metas


def alternatives(kind: Any) -> Iterator[Any]:
    """The members of a union, nested and annotated ones included, or the type itself."""
    bare, _ = unwrap(kind)
    if get_origin(bare) in (Union, types.UnionType):
        for member in get_args(bare):
            yield from alternatives(member)
    else:
        yield kind


def registry_of(kind: Any) -> Names | None:
    """The registry that a type made by `choice` refers to."""
    found = (meta.extra["registry"] for meta in unwrap(kind)[1] if meta.extra and "registry" in meta.extra)
    return next(found, None)


def choices(kind: Any) -> tuple[list[Any] | None, str]:
    """The values that a type allows, null aside, and what they are called; None unless it is a choice of values."""
    names: list[Any] | None = None
    what = "value"
    for option in alternatives(kind):
        registry, (bare, _) = registry_of(option), unwrap(option)
        if registry is not None:
            names, what = [*(names or []), *registry.names()], registry.kind
        elif get_origin(bare) is Literal:
            names = [*(names or []), *get_args(bare)]
        elif bare is not type(None):
            return None, what
    return names, what


def choices_of(struct: type[msgspec.Struct], name: str) -> list[Any]:
    """The values that a field allows, or each item of a list may have; none unless it is a choice."""
    kind = declared(struct, name)
    for option in alternatives(kind):
        bare, _ = unwrap(option)
        if get_origin(bare) in (list, tuple):
            kind = get_args(bare)[0]
    return choices(kind)[0] or []


def is_struct(kind: Any) -> bool:
    """Whether a type is a `msgspec.Struct`."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _read_map(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(located("file not found", file=path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(located(f"invalid YAML: {error}", file=path)) from error
    if not isinstance(raw, dict):
        raise ConfigError(located("expected a map of settings", file=path, found=type(raw).__name__))
    return raw


Report = Callable[..., None]


def _check(value: Any, kind: Any, field: str, report: Report) -> Any:
    """`value` with text converted to the expected types; every problem is reported, and the value kept."""
    options = list(alternatives(kind))
    if isinstance(value, Mapping):
        for option in options:
            bare, _ = unwrap(option)
            varied = variants_of(option)
            if varied:
                return _check_variant(value, varied, field, report)
            if is_struct(bare):
                return _check_struct(value, bare, field, report)
            if get_origin(bare) is dict:
                return _check_dict(value, bare, field, report)
    if isinstance(value, list | tuple):
        for option in options:
            bare, _ = unwrap(option)
            if get_origin(bare) in (list, tuple, set, frozenset):
                return _check_items(value, bare, option, field, report)
    if isinstance(value, str):
        names, what = choices(kind)
        if names is not None and value not in names:
            return _unknown(value, names, what, field, report)
    return _check_leaf(value, kind, field, report)


def _check_variant(value: Mapping[str, Any], varied: Variants, field: str, report: Report) -> dict[str, Any]:
    structs, where = varied.structs(), _below(field, varied.key)
    chosen = value.get(varied.key)
    if chosen is None:
        report(where, "required key is missing", expected=list(structs))
    elif chosen not in structs:
        _unknown(str(chosen), structs, varied.key, where, report)
    else:
        others = {key: inner for key, inner in value.items() if key != varied.key}
        return {varied.key: chosen, **_check_struct(others, structs[chosen], field, report)}
    return dict(value)


def _check_struct(value: Mapping[str, Any], struct: type, field: str, report: Report) -> dict[str, Any]:
    fields = {f.encode_name: f for f in msgspec.structs.fields(struct)}
    sound = True

    def note(*args: Any, **facts: Any) -> None:
        nonlocal sound
        sound = False
        report(*args, **facts)

    checked = {}
    for key, inner in value.items():
        if key in fields:
            checked[key] = _check(inner, fields[key].type, _below(field, key), note)
        else:
            note(_below(field, key), f"unknown key{nearest(str(key), fields)}")
    for key, declared in fields.items():
        if declared.required and key not in value:
            note(_below(field, key), "required key is missing")
    if sound:  # only now can the struct's own check of its values run
        _try(checked, struct, field, report)
    return checked


def _check_dict(value: Mapping[Any, Any], kind: Any, field: str, report: Report) -> dict[Any, Any]:
    key_type, value_type = get_args(kind)
    checked = {}
    for key, inner in value.items():
        where = _below(field, key)
        registry = registry_of(key_type)
        if registry is not None and key not in registry:
            _unknown(str(key), registry.names(), registry.kind, where, report)
        else:
            checked[_check(key, key_type, where, report)] = _check(inner, value_type, where, report)
    return checked


def _check_items(value: Any, bare: Any, kind: Any, field: str, report: Report) -> list[Any]:
    types_, problems = get_args(bare), []

    def note(*args: Any, **facts: Any) -> None:
        problems.append(args)
        report(*args, **facts)

    fixed = get_origin(bare) is tuple and types_[-1:] != (Ellipsis,)
    if fixed and len(types_) != len(value):
        report(field, f"expected a list of {len(types_)} values", found=list(value))
        return list(value)
    kinds = types_ if fixed else [types_[0]] * len(value)
    items = [_check(item, k, f"{field}[{i}]", note) for i, (item, k) in enumerate(zip(value, kinds, strict=True))]
    if not problems:
        _try(items, kind, field, report)
    return items


def _non_finite(value: Any, field: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield field, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _non_finite(inner, _below(field, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _non_finite(inner, f"{field}[{i}]")


def _is_finite(value: Any, field: str, report: Report) -> bool:
    found = list(_non_finite(value, field))
    for where, number in found:
        report(where, NOT_FINITE, found=str(number))
    return not found


def _check_leaf(value: Any, kind: Any, field: str, report: Report) -> Any:
    if not _is_finite(value, field, report):
        return value
    try:
        msgspec.convert(value, kind)
        return value
    except msgspec.ValidationError as error:
        if isinstance(value, str):
            try:
                converted = msgspec.to_builtins(msgspec.convert(value, kind, strict=False))
                return converted if _is_finite(converted, field, report) else value
            except msgspec.ValidationError:
                pass
        _report_invalid(error, value, field, report)
        return value


def _try(value: Any, kind: Any, field: str, report: Report) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        _report_invalid(error, None, field, report)


def _report_invalid(error: msgspec.ValidationError, value: Any, field: str, report: Report) -> None:
    text, _, inner = str(error).partition(" - at `$")
    where = field + inner.rstrip("`")
    report(where.removeprefix("."), text[:1].lower() + text[1:], found=value if isinstance(value, SCALARS) else None)


def _unknown(value: str, names: Any, kind: str, field: str, report: Report) -> str:
    report(field, f"unknown {kind} {value!r}{nearest(value, names)}", expected=list(names))
    return value


def _below(field: str, key: Any) -> str:
    return f"{field}.{key}" if field else str(key)
