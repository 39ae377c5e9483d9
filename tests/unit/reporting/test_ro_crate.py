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
    """A run in the folder `results` of a workflow."""
    run = tmp_path / "results/cats_9"
    run.mkdir(parents=True)
    report_inputs(generated(0, lvis=False, images=2), run)
    for folder in ("eval", "train", "merged", "data"):
        (run / folder).mkdir()
    (run / "predictions.jsonl").rename(run / "eval/predictions.jsonl")
    (run / "log.jsonl").rename(run / "train/log.jsonl")
    (run / "merged/config.json").write_text("{}")
    (run / "data/val.jsonl").write_text("")
    (tmp_path / "rules").mkdir()
    for name in ("Snakefile", "rules/train.smk", "rules/notes.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    return run


def test_a_run_is_described_with_its_files_and_stages(run_dir, capsys):
    assert main(["crate", str(run_dir)]) == 0
    crate = read_json(run_dir / "ro-crate-metadata.json")
    assert crate["@context"] == CONTEXT
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    undescribed = {name for name in references(crate["@graph"]) if name not in entities}
    assert undescribed == {"https://w3id.org/ro/crate/1.1"}
    files = [name for name, entity in entities.items() if "File" in entity["@type"]]
    rules = {"workflow/Snakefile", "workflow/rules/train.smk"}
    made = {"eval.json", "eval/predictions.jsonl", "merged/config.json", "train/log.jsonl"}
    assert {"data/val.jsonl"} | made | rules == set(files)
    assert {part["@id"] for part in entities["./"]["hasPart"]} == set(files)
    assert all(entities[name]["sha256"] == sha256_file(run_dir / name) for name in files)
    prediction = entities["#prediction"]
    assert prediction["result"] == {"@id": "eval/predictions.jsonl"}
    assert [part["@id"] for part in prediction["object"]] == [
        "merged/config.json",
        "data/val.jsonl",
    ] and "#report" not in entities
    assert str(run_dir) not in (run_dir / "ro-crate-metadata.json").read_text()


def test_the_snakefile_is_the_main_workflow_and_its_execution_is_described(run_dir):
    entities = {entity["@id"]: entity for entity in read_json(write_crate(run_dir))["@graph"]}
    assert "https://w3id.org/ro/wfrun/workflow/0.5" in {profile["@id"] for profile in entities["./"]["conformsTo"]}
    workflow = entities[entities["./"]["mainEntity"]["@id"]]
    assert set(workflow["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    assert entities[workflow["programmingLanguage"]["@id"]]["@type"] == "ComputerLanguage"
    assert (run_dir / workflow["@id"]).read_text() == "# Snakefile\n"
    [execution] = [entity for entity in entities.values() if entity.get("instrument") == {"@id": workflow["@id"]}]
    assert execution["@type"] == "CreateAction" and execution["object"] == {"@id": "data/val.jsonl"}
    assert {"@id": "eval.json"} in execution["result"] and {"@id": "#run"} in entities["./"]["mentions"]


def test_the_workflow_folder_is_required_for_a_run_outside_of_it(run_dir, tmp_path, capsys):
    moved = run_dir.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"no Snakefile\n  -> pass the folder of the workflow with --workflow"):
        write_crate(moved)
    for _ in range(2):  # also over an earlier crate
        assert main(["crate", str(moved), "--workflow", str(tmp_path)]) == 0
    assert (moved / "workflow/rules/train.smk").is_file()


def test_the_rocrate_library_reads_the_crate(run_dir):
    rocrate = pytest.importorskip("rocrate.rocrate")
    crate = rocrate.ROCrate(write_crate(run_dir).parent)
    assert crate.mainEntity.id == "workflow/Snakefile" and crate.mainEntity.lang.name == "Snakemake"
    assert {action.id for action in crate.root_dataset["mentions"]} == {
        "#run",
        "#training",
        "#merging",
        "#prediction",
        "#evaluation",
    }
    assert all((run_dir / part.id).is_file() for part in crate.root_dataset["hasPart"])


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"it has no eval\.json"):
        write_crate(tmp_path)
