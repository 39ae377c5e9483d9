"""The JSON schema that is generated from the types of the configuration."""

import jsonschema
from config_cases import CONFIG

from coordexp.config.schema import json_schema


def test_the_generated_schema_accepts_the_configuration_and_refuses_mistakes():
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(CONFIG)) == []
    for change in ({"predict": {"decode": "locl"}}, {"predict": {"decoder": "local"}}, {"datasets": {"a": {}}}):
        assert list(validator.iter_errors(change)) != []


def test_every_key_of_the_schema_has_a_description():
    definitions = json_schema()["$defs"]
    missing = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, node in definition.get("properties", {}).items()
        if not (node.get("description") or any(part.get("description") for part in node.get("anyOf", ())))
    ]
    assert missing == []
