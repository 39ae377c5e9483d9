"""Scoring at the size of LVIS val and Objects365 val: CPU seconds, peak memory and AP beside other scorers.

python benchmarks/evaluate_scale.py [--fractions 0.1 1] [--workloads ...] [--folder DIR] [--parts N] [--out FILE]

Each fraction of a workload is generated and scored by processes, one after the other: hotcoco and the reference
(lvis-api for LVIS, pycocotools for Objects365) from COCO results to the arrays of precision and recall, and
`evaluate()` from predictions.jsonl to eval.json (AP, F1, calibration, breakdowns; without bootstrap). Memory is the
peak of the resident set. `largest_difference` is from hotcoco: of CoordExp in the metrics, of the reference in any
entry of its arrays.

The memory of the references exceeds 20 GB at full size, so they score `Workload.parts` files, each with every n-th
category, at the largest fraction; `--parts` scores the first of them only. CPU time is the sum, memory the largest.
Measurements in `--folder` are kept, so an interrupted benchmark continues. `growth` is the measured exponent of the
CPU time between the two largest sizes (1: proportional to the number of detections).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from evaluate_scoring import import_lvis
from evaluate_workloads import WORKLOADS, Workload, generate

from coordexp.runtime.io import read_json, write_json

AREAS = ("", "s", "m", "l")
ARRAYS = ("precision", "recall")
Arrays = tuple[np.ndarray, np.ndarray]  # precision [T, R, K, A] and recall [T, K, A], -1 without ground truth


def score_coordexp(folder: Path, workload: Workload) -> dict:
    from coordexp.evaluation.evaluate import evaluate
    from coordexp.evaluation.options import EvaluateOptions

    options = EvaluateOptions(protocols=(workload.protocol,), bootstrap=0)
    files = (folder / "predictions.jsonl", folder / "annotations.json")
    result = evaluate(*files, options, dataset="generated", split="val", out=folder / "eval.json")
    metrics = getattr(result, workload.protocol).metrics
    return {name: value for name, value in metrics.items() if name.startswith(("AP", "AR"))}


def score_hotcoco(folder: Path, workload: Workload) -> Arrays:
    from hotcoco import COCO, COCOeval, LVISeval, LVISResults

    gt = COCO(f"{folder}/annotations.json")
    results, limit = f"{folder}/results.json", workload.detections_per_image
    if workload.protocol == "lvis":
        evaluator = LVISeval(gt, LVISResults(gt, results, max_dets=limit), "bbox")
    else:
        evaluator = COCOeval(gt, gt.load_res(results), "bbox")
        evaluator.params.max_dets = [1, 10, limit]
    evaluator.evaluate()
    evaluator.accumulate()
    areas = [list(evaluator.params.area_rng_lbl).index(a) for a in ("all", "small", "medium", "large")]
    precision, recall = (np.asarray(evaluator.eval[name]) for name in ("precision", "recall"))
    return precision[:, :, :, areas, -1], recall[:, :, areas, -1]


def score_pycocotools(folder: Path, workload: Workload) -> Arrays:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt = COCO(f"{folder}/annotations.json")
    evaluator = COCOeval(gt, gt.loadRes(f"{folder}/results.json"), "bbox")
    evaluator.params.maxDets = [1, 10, workload.detections_per_image]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]


def score_lvis_api(folder: Path, workload: Workload) -> Arrays:
    evaluator = import_lvis().LVISEval(f"{folder}/annotations.json", f"{folder}/results.json", "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


SCORERS: dict[str, Callable[[Path, Workload], dict | Arrays]] = {
    "coordexp": score_coordexp,
    "hotcoco": score_hotcoco,
    "pycocotools": score_pycocotools,
    "lvis-api": score_lvis_api,
}
REFERENCES = {"lvis": "lvis-api", "coco": "pycocotools"}


def in_process(name: str, folder: Path, workload: Workload) -> None:
    """Body of a measured process: writes its CPU seconds, its peak memory, and the metrics or arrays to `folder`."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = SCORERS[name](folder, workload)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    row = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": peak / 1000}
    if isinstance(found, tuple):
        for array, values in zip(ARRAYS, found, strict=True):
            np.save(folder / f"{name}.{array}.npy", values)
        found = {}
    (folder / f"{name}.json").write_bytes(msgspec.json.encode({**row, "metrics": found}))


def run(target: Callable, *args: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{target.__name__}{args} ended with exit code {process.exitcode}")


def measured(name: str, folder: Path, workload: Workload) -> dict:
    """CPU seconds, peak memory in MB, and metrics of a scorer."""
    if not (folder / f"{name}.json").is_file():
        run(in_process, name, folder, workload)
    return read_json(folder / f"{name}.json")


def arrays_of(name: str, folder: Path) -> list[np.ndarray]:
    return [np.load(folder / f"{name}.{array}.npy") for array in ARRAYS]


def reference_row(name: str, folder: Path, workload: Workload, parts: int, limit: int) -> dict:
    """Row of a reference that scores the first `limit` of `parts` files."""
    hotcoco = arrays_of("hotcoco", folder)
    rows, differences, count = [], [], 0
    for part in range(min(limit, parts)):
        part_folder = folder / f"part{part}"
        rows.append(measured(name, part_folder, workload))
        ids = np.arange(1, workload.categories + 1)
        chosen = np.flatnonzero(ids % parts == part)
        for n, (mine, theirs) in enumerate(zip(arrays_of(name, part_folder), hotcoco, strict=True)):
            differences.append(np.abs(mine - theirs.take(chosen, axis=2 - n)).max())
        count += len(chosen)
    return {
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "peak_mb": round(max(row["peak_mb"] for row in rows)),
        "parts": parts,
        "scored_parts": len(rows),
        "categories": count,
        "largest_difference": float(max(differences)),
    }


def metrics_of(folder: Path, workload: Workload) -> dict[str, float]:
    """Metrics from the arrays of hotcoco."""
    precision, recall = arrays_of("hotcoco", folder)
    metrics = {"AP50": mean(precision[0, :, :, 0]), "AP75": mean(precision[5, :, :, 0])}
    lvis = workload.protocol == "lvis"
    for a, area in enumerate(AREAS):
        metrics[f"AP{area}"] = mean(precision[..., a])
        limit = workload.detections_per_image
        metrics[f"AR{area}@{limit}" if lvis else f"AR{area or limit}"] = mean(recall[..., a])
    if lvis:
        frequency = np.array([c["frequency"] for c in read_json(folder / "annotations.json")["categories"]])
        metrics |= {f"AP{letter}": mean(precision[:, :, frequency == letter, 0]) for letter in "rcf"}
    return metrics


def mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean())


def measure(workload: Workload, fraction: float, folder: Path, limit: int) -> dict:
    """Measurements of all scorers for a fraction of a workload; its files are generated in `folder` if missing."""
    images = round(fraction * workload.images)
    parts = max(1, round(workload.parts * fraction))
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run(generate, str(folder), workload, images, parts)
        (folder / "complete").touch()
    rows = {name: measured(name, folder, workload) for name in ("hotcoco", "coordexp")}
    for row in rows.values():
        row.update(cpu_seconds=round(row["cpu_seconds"], 1), peak_mb=round(row["peak_mb"]))
    expected = rows["hotcoco"]["metrics"] = metrics_of(folder, workload)
    found = rows["coordexp"]["metrics"]
    rows["coordexp"]["largest_difference"] = max(abs(found[name] - value) for name, value in expected.items())
    if limit:
        name = REFERENCES[workload.protocol]
        rows[name] = reference_row(name, folder, workload, parts, limit)
    return {"images": images, "detections": images * workload.detections_per_image, "scorers": rows}


def growth(sizes: list[dict]) -> dict[str, float]:
    """Exponent of the growth of each scorer's CPU time between the two largest sizes."""
    if len(sizes) < 2:
        return {}
    a, b = sizes[-2:]
    ratio = math.log(b["detections"] / a["detections"])
    return {
        name: round(math.log(b["scorers"][name]["cpu_seconds"] / a["scorers"][name]["cpu_seconds"]) / ratio, 2)
        for name in ("hotcoco", "coordexp")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--folder", type=Path, help="keep the files here; 2 GB per workload at full size")
    parser.add_argument("--parts", type=int, default=100, help="most files that the references score; 0: none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = {}
    for name in args.workloads:
        sizes = []
        for fraction in sorted(args.fractions):
            with contextlib.ExitStack() as stack:
                folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                limit = args.parts if fraction == max(args.fractions) else 0
                sizes.append(measure(WORKLOADS[name], fraction, folder / f"{name}-{fraction:g}", limit))
            print(name, json.dumps(sizes[-1]), flush=True)
        report[name] = {"measured": sizes, "growth": growth(sizes)}
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
