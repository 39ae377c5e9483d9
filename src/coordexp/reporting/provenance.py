"""Provenance of a run: training manifest, package versions, and the code that trained, evaluated and reported it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import coordexp
from coordexp.evaluation.evaluate import EVALUATION_CODE
from coordexp.evaluation.results import EvalResult
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.io import read_json, sha256_file
from coordexp.runtime.software import revision, versions

PREDICTION_CODE, REPORT_CODE = "coordexp.inference.predict", "coordexp.reporting.report"


class StageCode(NamedTuple):
    """The code that ran one stage; None where it was not recorded."""

    stage: str
    version: str | None  # of CoordExp
    identity: str | None  # see runtime.code_identity
    current: bool | None  # same as the installed code


def provenance(train_manifest: str | Path, calibration: str | Path | None = None) -> dict[str, Any]:
    """Training manifest, score calibration if any, package versions and git revision, as JSON-compatible values."""
    fitted = {} if calibration is None else {"calibration": read_json(calibration)}
    return {
        "training": read_json(train_manifest),
        "training_manifest_sha256": sha256_file(train_manifest),
        **fitted,
        "versions of the report": versions(),
        "revision of the report": revision(Path(__file__).parent),
    }


def stage_codes(training: Mapping[str, Any], result: EvalResult) -> list[StageCode]:
    """The code that trained (from the training manifest), predicted, evaluated (from eval.json) and reported a run."""
    trained_with = training.get("code")
    trained = StageCode("training", None, None, None)
    if trained_with:
        same = trained_with["code"] == code_identity(*trained_with["modules"])
        trained = StageCode("training", trained_with["coordexp"], trained_with["code"], same)
    current = code_identity(PREDICTION_CODE)
    predicted = [
        StageCode("prediction", made.software["coordexp"], made.code, made.code == current)
        for made in result.inputs.predictions.made_by or ()
    ]
    evaluated = result.code == code_identity(EVALUATION_CODE)
    return [
        trained,
        *predicted,
        StageCode("evaluation", result.software["coordexp"], result.code, evaluated),
        StageCode("report", coordexp.__version__, code_identity(REPORT_CODE), True),
    ]


def selection(training: Mapping[str, Any], reported: str | None) -> str | None:
    """Which checkpoint was evaluated, which split selected it, and which one is reported; None without a manifest."""
    if "step" not in training:
        return None
    results = f"The results are on {reported}." if reported else ""
    if not training.get("best"):
        return f"Checkpoint: step {training['step']:,}, the last one of the run; no checkpoint was selected. {results}"
    best = training["best"]
    chosen_on = Path(training["recipe"]["custom"].get("val_jsonl") or "").name.split(".")[0]
    step = f"step {training['step']:,} of {best['last_step']:,}"
    text = f"Checkpoint: {step}, selected by {best['metric']}{f' on {chosen_on}' if chosen_on else ''}."
    if reported and chosen_on.removesuffix("_tiny") == reported.removesuffix("_tiny"):
        text = f"{text} The results are on the same split and therefore optimistic"
        return f"{text}: report on images that were not used for the selection (predict.split: test)."
    return f"{text} {results}"
