"""The types of eval.json and compare.json: schema, descriptions, reading and its errors."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest
from evaluation_cases import generated

from coordexp.evaluation.compare_results import CompareResult, load_compare
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.results import EvalResult, load_eval, schema, validated
from coordexp.runtime.errors import DataError


@pytest.fixture
def eval_json(tmp_path):
    predictions, annotations = generated(0, lvis=True, images=6).write(tmp_path)
    out = tmp_path / "eval.json"
    evaluate(predictions, annotations, EvaluateOptions(bootstrap=2), dataset="generated", split="val", out=out)
    return out


@pytest.mark.parametrize("kind", [EvalResult, CompareResult])
def test_schema_is_valid_and_describes_every_type(kind):
    generated_schema = schema(kind)
    jsonschema.Draft202012Validator.check_schema(generated_schema)
    for name, definition in generated_schema["$defs"].items():
        assert definition.get("description"), name
        assert definition["additionalProperties"] is False, name


def test_schema_refuses_unknown_and_missing_fields(eval_json):
    content = json.loads(eval_json.read_text())
    jsonschema.validate(content, schema())
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        jsonschema.validate(content | {"extra": 1}, schema())
    del content["counts"]["images"]
    with pytest.raises(jsonschema.ValidationError, match="'images' is a required property"):
        jsonschema.validate(content, schema())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema_version=1), r"eval\.json: schema_version: not an eval\.json of this"),
        (lambda content: content["counts"].update(images=-1), r"not an eval\.json: .*counts\.images"),
        (lambda content: content["coco"].pop("metrics"), r"missing required field `metrics` - at `\$\.coco`"),
        (lambda content: content.update(extra=1), "unknown field `extra`"),
    ],
)
def test_invalid_files_are_refused(eval_json, change, message):
    content = json.loads(eval_json.read_text())
    change(content)
    eval_json.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_eval(eval_json)


def test_other_json_is_refused(tmp_path, eval_json):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"not an eval\.json of this version"):
        load_eval(tmp_path / "list.json")
    with pytest.raises(DataError, match=r"not a compare\.json"):
        load_compare(eval_json)


def test_values_of_the_wrong_type_are_refused_before_writing(eval_json):
    result = load_eval(eval_json)
    assert validated(result) == result
    with pytest.raises(msgspec.ValidationError, match=r"\$\.dataset"):
        validated(msgspec.structs.replace(result, dataset=3))
