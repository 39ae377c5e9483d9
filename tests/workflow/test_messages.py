"""An invalid configuration and a failed job end with cause, remedy and log, and without a traceback."""

import pytest


@pytest.mark.parametrize(
    ("changes", "target", "expected"),
    [
        ({"data": {"tinyy": 3}}, "results/shapes_9/eval.json", "data.tinyy: unknown key, did you mean 'tiny'?"),
        ({}, "results/shaps_9/eval.json", "unknown dataset 'shaps', did you mean 'shapes'?"),
        (
            {"predict": {"engine": "vllm"}},
            "results/shapes_9/eval.json",
            "vllm is not installed",
        ),
    ],
)
def test_a_wrong_configuration_is_explained_without_a_traceback(new_workflow, monkeypatch, changes, target, expected):
    monkeypatch.delenv("COORDEXP_VLLM_PYTHON", raising=False)
    workflow = new_workflow("wrong")
    workflow.change(workflow.changes | changes)
    done = workflow.run("--dry-run", target, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode != 0 and expected in printed
    assert "Traceback" not in printed and '\n  File "' not in printed


def test_a_failed_job_ends_with_cause_remedy_and_log(new_workflow):
    """The shell command, which contains the whole recipe in rule train, is not printed."""
    workflow = new_workflow("failed")
    own = {"format": "coco", "root": str(workflow.folder / "absent"), "annotations": {"val": "val.json"}}
    workflow.change({"datasets": {"own": {**own, "image_dirs": {"val": ["images"]}}}})
    done = workflow.run("resources/own/val.source.json", check=False)
    assert done.returncode != 0
    cause, *fix, log = done.stderr.rstrip().splitlines()[-3:]
    assert cause.startswith("rule download (dataset=own, split=val): ") and str(workflow.folder / "absent") in cause
    assert [line[:5] for line in fix] == ["  -> "] and log == "  log: results/logs/download/own.val.log"
    assert "set -euo pipefail" not in done.stderr and "Traceback" not in done.stderr
