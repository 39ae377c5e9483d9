"""Files of a generated run, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation_cases import HEIGHT, WIDTH, Case
from PIL import Image

from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions

LOG = [{"step": i, "loss": 5 / i, "l1": 1 / i, "learning_rate": 1e-3} for i in range(1, 60)]


def report_inputs(case: Case, folder: Path, phrases: dict[int, list[dict]] | None = None) -> dict:
    """Files of a run: the arguments of `write_report` other than the page. phrases: of the records, by image id."""
    predictions, annotations = case.write(folder)
    options = EvaluateOptions(bootstrap=3)
    evaluate(predictions, annotations, options, dataset="generated", split="val", out=folder / "eval.json")
    names = {c["id"]: c["name"] for c in case.categories}
    (folder / "images").mkdir()
    with (folder / "val.jsonl").open("w") as handle:
        for image in case.images:
            Image.new("RGB", (WIDTH // 2, HEIGHT // 2), (60, 90, 60)).save(folder / "images" / f"{image['id']}.jpg")
            own = record(image, case.annotations, names)
            handle.write(json.dumps(own | {"phrases": (phrases or {}).get(image["id"], [])}) + "\n")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return {
        "eval_json": folder / "eval.json",
        "predictions": predictions,
        "records_jsonl": folder / "val.jsonl",
        "train_log": folder / "log.jsonl",
        "provenance": {"config": {"seed": 17}, "note": "<script>alert(1)</script>"},
        "num_examples": 6,
    }


def record(image: dict, annotations: list[dict], names: dict[int, str]) -> dict:
    objects = []
    for row in annotations:
        if row["image_id"] == image["id"]:
            x, y, w, h = row["bbox"]
            norm = [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT]
            box = [v * s for v, s in zip(norm, [WIDTH // 2, HEIGHT // 2] * 2, strict=True)]
            objects.append(
                {"desc": names[row["category_id"]], "category_id": row["category_id"], "norm": norm, "bbox_2d": box}
            )
    metadata = {"image_id": image["id"], "source_width": WIDTH, "source_height": HEIGHT}
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    metadata |= {name: image[name] for name in lists if name in image}
    size = {"width": WIDTH // 2, "height": HEIGHT // 2, "coord_space": "pixel"}
    return {"images": [f"images/{image['id']}.jpg"], **size, "objects": objects, "metadata": metadata}
