"""Generated ground truth and predictions, written to files, for the tests of evaluation and reporting."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coordexp.evaluation.detections import DetectionTable, collect_detections, read_predictions
from coordexp.evaluation.ground_truth import GroundTruth, load_ground_truth
from coordexp.evaluation.label_mapping import LabelMap

WIDTH, HEIGHT = 640, 480


@dataclass
class Case:
    """A dataset and the detections of one run, in pixels of the source images."""

    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    # image id -> [(desc, [x1, y1, x2, y2] px, score)]
    detections: dict[int | str, list[tuple[str, list[float], float]]] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """(predictions.jsonl, annotations.json) in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (folder / "annotations.json").write_text(json.dumps(content))
        with (folder / "predictions.jsonl").open("w") as handle:
            for image in self.images:
                handle.write(json.dumps(self.line(image)) + "\n")
        return folder / "predictions.jsonl", folder / "annotations.json"

    def line(self, image: dict) -> dict:
        w, h = image["width"], image["height"]
        found = [
            {"desc": desc, "norm": [x1 / w, y1 / h, x2 / w, y2 / h], "score": score}
            for desc, (x1, y1, x2, y2), score in self.detections.get(image["id"], [])
        ]
        size = {"source_width": w, "source_height": h}
        return {"image_id": image["id"], **size, "protocol": "open", "finish": "stop", "text": "", "detections": found}

    def sort_detections(self) -> None:
        """Put the detections of each image in the order of the tie rule."""
        for found in self.detections.values():
            found.sort(key=lambda row: _tie_rule((row[0], _xywh(row[1]), row[2])))

    def coco_results(self) -> list[dict]:
        """The detections with a known category as COCO results, in the order of the tie rule."""
        ids = {c["name"]: c["id"] for c in self.categories}
        rows = []
        for image in sorted(self.images, key=lambda i: i["id"]):
            boxes = [(desc, _xywh(box), score) for desc, box, score in self.detections.get(image["id"], [])]
            for desc, box, score in sorted(boxes, key=_tie_rule):
                if desc in ids:
                    rows.append({"image_id": image["id"], "category_id": ids[desc], "bbox": box, "score": score})
        return rows


@dataclass
class PhraseCase(Case):
    """A case whose predictions answer phrases; `facts` are further fields of predictions, by image id."""

    facts: dict[int | str, dict] = field(default_factory=dict)

    def line(self, image: dict) -> dict:
        return super().line(image) | {"protocol": "phrases"} | self.facts.get(image["id"], {})


def _xywh(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)]


def _tie_rule(row: tuple[str, list[float], float]) -> tuple:
    desc, box, score = row
    return -score, desc, box


def load(case: Case, folder: Path) -> tuple[GroundTruth, DetectionTable]:
    """Write the case to `folder` and read it back."""
    predictions, annotations = case.write(folder)
    ground_truth = load_ground_truth(annotations)
    labels = LabelMap(ground_truth.categories)
    return ground_truth, collect_detections(read_predictions(predictions), ground_truth, labels)[0]


def image(image_id: int) -> dict:
    return {"id": image_id, "width": WIDTH, "height": HEIGHT}


def annotation(annotation_id: int, image_id: int, box: list[float], category_id: int = 1) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": box, "area": box[2] * box[3]}


def categories(count: int) -> list[dict]:
    return [
        {"id": 2 * k + 1, "name": f"thing{k}", "synonyms": [f"thing{k}", f"stuff{k}"], "frequency": "rcf"[k % 3]}
        for k in range(count)
    ]


def three_images() -> Case:
    """Small and medium objects in image 1, a large one in image 2, none in image 3; three known detections.

    The small object is detected exactly and the large one with IoU 0.82; the medium one (thing1) is missed, and
    image 3 has a false positive of thing1, which LVIS verifies as absent there.
    """
    absent = {1: [], 2: [], 3: [3]}
    images = [image(i) | {"neg_category_ids": absent[i], "not_exhaustive_category_ids": []} for i in absent]
    small, medium, large = [100, 100, 20, 20], [300, 100, 50, 50], [100, 100, 100, 100]
    annotations = [annotation(1, 1, small), annotation(2, 1, medium, 3), annotation(3, 2, large)]
    case = Case(images, annotations, categories(3))
    case.detections = {
        1: [("thing0", [100, 100, 120, 120], 0.9)],
        2: [("thing0", [100, 100, 200, 182], 0.8)],
        3: [("thing1", [10, 10, 60, 60], 0.7)],
    }
    return case


def generated(seed: int, *, images: int = 30, kinds: int = 6, lvis: bool, crowds: float = 0.0, noise: int = 6) -> Case:
    """Random objects, detections near them and elsewhere, many equal scores, images without objects."""
    rng = np.random.default_rng(seed)
    case = Case([], [], categories(kinds))
    for i in range(images):
        row = {"id": 3 * i + 2, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.jpg"}
        case.images.append(row)
        found = case.detections.setdefault(row["id"], [])
        present = set()
        for _ in range(int(rng.poisson(4)) if i % 6 else 0):
            k, box = int(rng.integers(kinds)), _box(rng)
            present.add(k)
            x, y, w, h = box
            case.annotations.append(
                {
                    "id": len(case.annotations) + 1,
                    "image_id": row["id"],
                    "category_id": case.categories[k]["id"],
                    "bbox": box,
                    "area": round(w * h * 0.8, 2),
                    "iscrowd": int(rng.random() < crowds),
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                jitter = np.round(rng.normal(0, 5, 4), 2)
                shown = k if rng.random() < 0.9 else int(rng.integers(kinds))
                left, top = x + jitter[0], y + jitter[1]
                corners = [left, top, max(left + 1, x + w + jitter[2]), max(top + 1, y + h + jitter[3])]
                found.append((f"thing{shown}", [round(float(v), 2) for v in corners], _score(rng)))
        for _ in range(int(rng.poisson(noise))):
            x, y, w, h = _box(rng)
            found.append((f"thing{rng.integers(kinds)}", [x, y, round(x + w, 2), round(y + h, 2)], _score(rng)))
        if lvis:
            absent = [k for k in range(kinds) if k not in present]
            row["neg_category_ids"] = [case.categories[k]["id"] for k in absent[: len(absent) // 2]]
            row["not_exhaustive_category_ids"] = [case.categories[k]["id"] for k in sorted(present)[:1]]
    return case


def _box(rng: np.random.Generator) -> list[float]:
    w, h = float(np.exp(rng.uniform(1.5, 5.5))), float(np.exp(rng.uniform(1.5, 5.5)))
    x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
    return [round(float(v), 2) for v in (x, y, w, h)]


def _score(rng: np.random.Generator) -> float:
    return round(float(rng.uniform()), 1)
