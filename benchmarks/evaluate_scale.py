"""Scoring at the size of LVIS val and Objects365 val: seconds and peak memory beside hotcoco and pycocotools.

python benchmarks/evaluate_scale.py [--fractions 0.0125 0.025] [--out FILE]

Each fraction of a workload is generated and scored by three processes, one after the other: `evaluate()` from
predictions.jsonl to eval.json (AP, F1, calibration, breakdowns; without bootstrap), hotcoco, and pycocotools with the
same limit of detections, both from COCO results to their metrics. pycocotools ignores the federated lists of LVIS.
`full` extrapolates to the full size from the two largest fractions, a straight line; `growth` is the measured exponent
between them (1: proportional to the number of detections).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evaluate_scoring import make
from measuring import measured

from coordexp.runtime.io import write_json


@dataclass(frozen=True)
class Workload:
    """The images, categories and detections per image of an evaluation."""

    protocol: str
    images: int
    categories: int
    detections_per_image: int


WORKLOADS = {
    "lvis_val": Workload("lvis", 19_809, 1203, 300),
    "objects365_val": Workload("coco", 80_000, 365, 100),
}


def score_coordexp(folder: str, protocol: str, max_dets: int) -> None:
    from coordexp.evaluation.evaluate import evaluate
    from coordexp.evaluation.options import EvaluateOptions

    root = Path(folder)
    options = EvaluateOptions(protocols=(protocol,), bootstrap=0)
    files = (root / "predictions.jsonl", root / "annotations.json")
    evaluate(*files, options, dataset="generated", split="val", out=root / "eval.json")


def score_hotcoco(folder: str, protocol: str, max_dets: int) -> None:
    from hotcoco import COCO, COCOeval, LVISeval, LVISResults

    gt = COCO(f"{folder}/annotations.json")
    results = f"{folder}/results.json"
    if protocol == "lvis":
        evaluator = LVISeval(gt, LVISResults(gt, results, max_dets=max_dets), "bbox")
    else:
        evaluator = COCOeval(gt, gt.load_res(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()


def score_pycocotools(folder: str, protocol: str, max_dets: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(f"{folder}/annotations.json")
        evaluator = COCOeval(gt, gt.loadRes(f"{folder}/results.json"), "bbox")
        evaluator.params.maxDets = [1, 10, max_dets]
        evaluator.evaluate()
        evaluator.accumulate()


SCORERS = {"coordexp": score_coordexp, "hotcoco": score_hotcoco, "pycocotools": score_pycocotools}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.0125, 0.025])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = {name: measure(workload, sorted(args.fractions)) for name, workload in WORKLOADS.items()}
    print(json.dumps(report, indent=1))
    if args.out:
        write_json(args.out, report)


def measure(workload: Workload, fractions: list[float]) -> dict:
    """Measurements of a workload by scorer and number of detections, and the extrapolation to its full size."""
    sizes, rows = [], {name: [] for name in SCORERS}
    for fraction in fractions:
        images = round(fraction * workload.images)
        count = images * workload.detections_per_image
        sizes.append(count)
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), images, count, workload.categories, seed=0)
            for name, scorer in SCORERS.items():
                row = measured(scorer, folder, workload.protocol, workload.detections_per_image)
                rows[name].append({"images": images, "detections": count, **row})
                print(name, rows[name][-1], flush=True)
    full = workload.images * workload.detections_per_image
    return {name: {"measured": measurements, **extrapolated(measurements, full)} for name, measurements in rows.items()}


def extrapolated(measurements: list[dict], full: int) -> dict:
    """Straight line through the two largest sizes at `full` detections, and the exponent of the growth of CPU time."""
    if len(measurements) < 2:
        return {}
    a, b = measurements[-2:]
    share = (full - a["detections"]) / (b["detections"] - a["detections"])
    line = {key: round(a[key] + share * (b[key] - a[key])) for key in ("cpu_seconds", "peak_mb")}
    growth = math.log(b["cpu_seconds"] / a["cpu_seconds"]) / math.log(b["detections"] / a["detections"])
    return {"full": {"detections": full, **line}, "growth": round(growth, 2)}


if __name__ == "__main__":
    main()
