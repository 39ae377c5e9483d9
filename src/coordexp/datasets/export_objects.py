"""Records and predictions as objects of supervision and FiftyOne; both libraries are optional."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordexp.datasets.export import Export, ExportedImage
from coordexp.runtime.software import library


def supervision_detections(content: Export) -> Iterator[tuple[ExportedImage, Any]]:
    """Each image with its `supervision.Detections`.

    `class_id` counts from 0 in the order of `content.categories`, `data["class_name"]` are the names, and `confidence`
    is None for ground truth.
    """
    supervision = library("supervision")
    index = {category_id: k for k, category_id in enumerate(content.categories)}
    for image in content.images():
        boxes = image.boxes
        scores = np.array([box.score for box in boxes], dtype=np.float32) if content.is_predictions else None
        yield (
            image,
            supervision.Detections(
                xyxy=np.array([box.xyxy for box in boxes], dtype=np.float32).reshape(-1, 4),
                class_id=np.array([index[box.category_id] for box in boxes], dtype=int),
                confidence=scores,
                data={"class_name": np.array([box.name for box in boxes], dtype=str)},
            ),
        )


def fiftyone_samples(content: Export, image_dirs: Sequence[str | Path]) -> Iterator[Any]:
    """A `fiftyone.Sample` for each image, with `fiftyone.Detections` as `predictions` or `ground_truth`.

    `image_dirs` are the folders of the source images; `dataset.add_samples` adds the samples to a dataset.
    """
    fiftyone = library("fiftyone", "pip install fiftyone")
    field = "predictions" if content.is_predictions else "ground_truth"
    for image in content.images():
        files = [Path(folder) / image.file_name for folder in image_dirs]
        file = next((file for file in files if file.is_file()), files[0])
        detections = [fiftyone.Detection(**fields) for fields in fiftyone_fields(image)]
        sample = fiftyone.Sample(filepath=str(file.resolve()))
        sample[field] = fiftyone.Detections(detections=detections)
        yield sample


def fiftyone_fields(image: ExportedImage) -> list[dict[str, Any]]:
    """The fields of a `fiftyone.Detection` for each box: bounding boxes are [x, y, width, height] as fractions."""
    rows = []
    for box in image.boxes:
        x1, y1, x2, y2 = box.xyxy
        relative = [x1 / image.width, y1 / image.height, (x2 - x1) / image.width, (y2 - y1) / image.height]
        score = {"confidence": box.score} if box.score is not None else {}
        rows.append({"label": box.name, "bounding_box": relative, **score})
    return rows
