"""Generated annotations and detections of the size and proportions of LVIS val and Objects365 val."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

WIDTH, HEIGHT = 640, 480
IMAGES_PER_BLOCK = 1000
PRESENT, NEGATIVE = 12, 8  # most categories of an image with objects, and its categories listed as absent


@dataclass(frozen=True)
class Workload:
    """The size of an evaluation. Categories follow Zipf's law, offset by `offset`.

    parts: number of files, by category, that the references score one after the other, because their memory for the
    whole exceeds 20 GB. Average precision is computed per category, so the metrics are the same.
    """

    protocol: str
    images: int
    categories: int
    objects_per_image: float
    categories_per_image: float
    detections_per_image: int
    offset: float
    parts: int


WORKLOADS = {
    "lvis_val": Workload("lvis", 19_809, 1203, 12.3, 3.4, 300, 10, 4),
    "objects365_val": Workload("coco", 80_000, 365, 15.5, 6.0, 100, 2, 8),
}
RARE, COMMON = 337, 461  # categories of LVIS v1 with these frequencies


def generate(folder: str, workload: Workload, images: int, parts: int, seed: int = 0) -> None:
    """annotations.json, results.json and predictions.jsonl in `folder`, and the first two in part0/, part1/, ...

    Half of the detections lie near objects, a quarter has a category that is judged in the image, the others have any
    category. Scores have four decimals, so that many are equal; detections are in the order of the tie rule.
    """
    root = Path(folder)
    rng = np.random.default_rng(seed)
    names = [f"thing{k:04d}" for k in range(workload.categories)]
    frequency = ["f"] * (len(names) - RARE - COMMON) + ["c"] * COMMON + ["r"] * RARE
    if workload.protocol != "lvis":
        frequency = ["f"] * len(names)
    categories = [
        {"id": k + 1, "name": name, "frequency": frequency[k], "synonyms": []} for k, name in enumerate(names)
    ]
    image_rows, writers = [], [_ResultsFile(root / "results.json")]
    for part in range(parts):
        (root / f"part{part}").mkdir()
        writers.append(_ResultsFile(root / f"part{part}" / "results.json"))
    annotations: list[dict] = []
    with (root / "predictions.jsonl").open("wb") as predictions:
        for number, image in enumerate(_images(rng, workload, images), 1):
            image_rows.append(image.row(number, workload.protocol))
            annotations += image.annotations(number, len(annotations))
            results = image.results(number)
            writers[0].add(results)
            for part, writer in enumerate(writers[1:]):
                writer.add([r for r in results if r["category_id"] % parts == part])
            predictions.write(msgspec.json.encode(image.prediction(number, names)) + b"\n")
    for writer in writers:
        writer.close()
    for folder_, part in [(root, None), *((root / f"part{n}", n) for n in range(parts))]:
        chosen = [[r for r in annotations if part is None or r["category_id"] % parts == part]]
        chosen.append([c for c in categories if part is None or c["id"] % parts == part])
        content = {"images": image_rows, "annotations": chosen[0], "categories": chosen[1]}
        (folder_ / "annotations.json").write_bytes(msgspec.json.encode(content))


class _ResultsFile:
    """A JSON list of COCO results, written in pieces."""

    def __init__(self, path: Path) -> None:
        self.file, self.empty = path.open("wb"), True

    def add(self, results: list[dict]) -> None:
        if results:
            self.file.write((b"[" if self.empty else b",\n") + msgspec.json.encode(results)[1:-1])
            self.empty = False

    def close(self) -> None:
        self.file.write(b"[]" if self.empty else b"]")
        self.file.close()


@dataclass(frozen=True)
class _Image:
    """Objects and detections of one image; categories are indices from 0, boxes x, y, w, h with two decimals."""

    object_category: np.ndarray
    object_box: np.ndarray
    negative: list[int]
    not_exhaustive: list[int]
    category: np.ndarray
    box: np.ndarray
    score: np.ndarray

    def row(self, number: int, protocol: str) -> dict:
        row = {"id": number, "width": WIDTH, "height": HEIGHT}
        if protocol == "lvis":
            row["neg_category_ids"] = [k + 1 for k in self.negative]
            row["not_exhaustive_category_ids"] = [k + 1 for k in self.not_exhaustive]
        return row

    def annotations(self, number: int, first: int) -> list[dict]:
        rows = zip(self.object_category.tolist(), self.object_box.tolist(), strict=True)
        common = {"image_id": number, "iscrowd": 0}
        return [
            {"id": first + n, **common, "category_id": k + 1, "bbox": box, "area": box[2] * box[3]}
            for n, (k, box) in enumerate(rows, 1)
        ]

    def results(self, number: int) -> list[dict]:
        rows = zip(self.category.tolist(), self.box.tolist(), self.score.tolist(), strict=True)
        return [{"image_id": number, "category_id": k + 1, "bbox": box, "score": score} for k, box, score in rows]

    def prediction(self, number: int, names: list[str]) -> dict:
        corner = np.concatenate([self.box[:, :2], self.box[:, :2] + self.box[:, 2:]], axis=1)
        rows = zip(self.category.tolist(), (corner / ([WIDTH, HEIGHT] * 2)).tolist(), self.score.tolist(), strict=True)
        detections = [{"desc": names[k], "norm": norm, "score": score} for k, norm, score in rows]
        size = {"source_width": WIDTH, "source_height": HEIGHT}
        return {"image_id": number, **size, "protocol": "open", "finish": "stop", "text": "", "detections": detections}


def _images(rng: np.random.Generator, workload: Workload, images: int) -> Iterator[_Image]:
    weight = 1 / (np.arange(workload.categories) + workload.offset)
    cumulative = np.cumsum(weight) / weight.sum()

    def drawn(*shape: int) -> np.ndarray:
        return np.minimum(np.searchsorted(cumulative, rng.uniform(size=shape)), workload.categories - 1)

    for start in range(0, images, IMAGES_PER_BLOCK):
        block = min(IMAGES_PER_BLOCK, images - start)
        objects = 1 + rng.negative_binomial(1, 1 / workload.objects_per_image, block)
        kinds = np.minimum(1 + rng.poisson(workload.categories_per_image - 1, block), PRESENT)
        listed = drawn(block, PRESENT + NEGATIVE)
        for i in range(block):
            yield _image(rng, workload, int(objects[i]), listed[i, : kinds[i]], listed[i, PRESENT:], drawn)


def _image(rng, workload, objects: int, present: np.ndarray, negative: np.ndarray, drawn) -> _Image:
    object_category = rng.choice(present, objects)
    object_box = _boxes(rng, objects)
    negative = np.setdiff1d(negative, object_category)
    count = workload.detections_per_image
    near = rng.integers(0, objects, count // 2)
    judged = np.concatenate([present, negative])
    category = np.concatenate(
        [object_category[near], rng.choice(judged, count // 4), drawn(count - count // 2 - count // 4)]
    )
    box = np.concatenate([object_box[near] + rng.normal(0, 4, (len(near), 4)), _boxes(rng, count - len(near))])
    box = np.round(box, 2)
    box[:, 2:] = np.maximum(box[:, 2:], 1)
    score = np.round(rng.uniform(size=count), 4)
    order = np.lexsort((*box.T[::-1], category, -score))
    not_exhaustive = present[:1].tolist() if rng.uniform() < 0.2 else []
    chosen = category[order], box[order], score[order]
    return _Image(object_category, object_box, negative.tolist(), not_exhaustive, *chosen)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    w, h = np.exp(rng.uniform(2, 5.3, (2, count)))
    x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
    return np.round(np.stack([x, y, w, h], axis=1), 2)
