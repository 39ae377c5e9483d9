"""JSON schema of the configuration, generated from its types, for editors: `python -m coordexp.config.schema`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from coordexp.config.sections import Dataset, Model, WorkflowConfig
from coordexp.runtime.config_io import Variants, alternatives, is_struct, registry_of, unwrap, variants_of
from coordexp.runtime.registry import Names


def json_schema(kind: type = WorkflowConfig) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a struct; choices from a registry are the names that it has now."""
    varied = {"datasets": variants_of(Dataset), "models": variants_of(Model)} if kind is WorkflowConfig else {}
    structs = list(dict.fromkeys(struct for variants in varied.values() for struct in variants.structs().values()))
    registries: dict[str, Names] = {}
    for struct in (kind, *structs):
        _collect(struct, registries, set())
    (schema, *refs), definitions = msgspec.json.schema_components([kind, *structs], ref_template="#/$defs/{name}")
    by_struct = dict(zip(structs, refs, strict=True))
    for section, variants in varied.items():
        options = [_variant(variants, name, by_struct[s], definitions) for name, s in variants.structs().items()]
        definitions[kind.__name__]["properties"][section]["additionalProperties"] = {"anyOf": options}
    for struct in structs:
        definitions.pop(struct.__name__, None)
    result = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}
    return _named(result, registries)


def _variant(variants: Variants, name: str, ref: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of a map whose `variants.key` is `name`: that of its struct with the key itself."""
    struct = definitions[ref["$ref"].rsplit("/", 1)[1]]
    key = {variants.key: {"const": name, "description": variants.description}}
    return {**struct, "properties": {**key, **struct["properties"]}, "required": [variants.key, *struct["required"]]}


def _collect(kind: Any, registries: dict[str, Names], seen: set[Any]) -> None:
    """Every registry that a type refers to, by its kind."""
    for option in alternatives(kind):
        registry, (bare, _) = registry_of(option), unwrap(option)
        if registry is not None:
            registries[registry.kind] = registry
        if is_struct(bare) and bare not in seen:
            seen.add(bare)
            for field in msgspec.structs.fields(bare):
                _collect(field.type, registries, seen)
        for inner in getattr(bare, "__args__", ()):
            _collect(inner, registries, seen)


def _named(node: Any, registries: Mapping[str, Names]) -> Any:
    """`node` with references to registries replaced by the registered names."""
    if isinstance(node, list):
        return [_named(item, registries) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _named(value, registries) for key, value in node.items()}
    kind = node.pop("x-registry", None)
    return node if kind is None else {**node, "enum": registries[kind].names()}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
