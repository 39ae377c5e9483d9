"""The RO-Crate of a run: every reference is described, every hash is right, and no local path is in it."""

import pytest
from evaluation_cases import generated
from report_cases import report_inputs

from coordexp.cli import main
from coordexp.reporting.ro_crate import CONTEXT, write_crate
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import read_json, sha256_file


def references(value):
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.fixture
def run_dir(tmp_path):
    report_inputs(generated(0, lvis=False, images=2), tmp_path)
    for folder in ("eval", "train", "merged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "predictions.jsonl").rename(tmp_path / "eval/predictions.jsonl")
    (tmp_path / "log.jsonl").rename(tmp_path / "train/log.jsonl")
    (tmp_path / "merged/config.json").write_text("{}")
    return tmp_path


def test_a_run_is_described_with_its_files_and_stages(run_dir, capsys):
    assert main(["crate", str(run_dir)]) == 0
    crate = read_json(run_dir / "ro-crate-metadata.json")
    assert crate["@context"] == CONTEXT
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    undescribed = {name for name in references(crate["@graph"]) if name not in entities}
    assert undescribed == {"https://w3id.org/ro/crate/1.1"}
    files = [name for name, entity in entities.items() if entity["@type"] == "File"]
    assert {"eval.json", "eval/predictions.jsonl", "merged/config.json", "train/log.jsonl"} == set(files)
    assert all(entities[name]["sha256"] == sha256_file(run_dir / name) for name in files)
    prediction = entities["#prediction"]
    assert prediction["result"] == [{"@id": "eval/predictions.jsonl"}]
    assert prediction["object"] == [{"@id": "merged/config.json"}] and "#report" not in entities
    assert str(run_dir) not in (run_dir / "ro-crate-metadata.json").read_text()


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"it has no eval\.json"):
        write_crate(tmp_path)
