"""The objects detected in one image, in pixels of that image, and conversions for other tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from coordexp.datasets.export import ExportedBox
from coordexp.datasets.export_formats import coco_annotation
from coordexp.inference.draw import draw
from coordexp.inference.image_sources import ImageSource
from coordexp.records import Detection
from coordexp.runtime.software import library

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """N objects in one image, in the order of the model's answer.

    name: path or URL of the image, or `image 2` for the second of several images given as pixels.
    width, height: of the image in pixels, after EXIF rotation.
    objects: the predicted objects, with coordinates in [0, 1].
    answer: what the model wrote, one line per answer.
    problems: number of parts of the answer that could not be used, by reason (docs/inference.md).
    truncated: whether the answer reached the maximum length; objects after that are missing.
    """

    name: str
    width: int
    height: int
    objects: tuple[Detection, ...]
    answer: str
    problems: dict[str, int]
    truncated: bool
    source: ImageSource = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def labels(self) -> list[str]:
        """Description of each object."""
        return [found.desc for found in self.objects]

    @property
    def scores(self) -> Floats:
        """Score of each object in [0, 1], float64 [N]: a probability if the detector has a calibration."""
        return np.array([found.score for found in self.objects], dtype=np.float64)

    @property
    def norm(self) -> Floats:
        """Box of each object as fractions of width and height, float64 [N, 4]: x1, y1, x2, y2."""
        return np.array([found.norm for found in self.objects], dtype=np.float64).reshape(-1, 4)

    @property
    def boxes(self) -> Floats:
        """Box of each object in pixels, float64 [N, 4]: x1, y1, x2, y2."""
        return self.norm * np.array([self.width, self.height, self.width, self.height])

    @property
    def polygons(self) -> list[Floats | None]:
        """Outline of each object in pixels, float64 [P, 2]; None for an object that is only a box."""
        size = np.array([self.width, self.height])
        return [np.array(found.poly).reshape(-1, 2) * size if found.poly else None for found in self.objects]

    @property
    def spreads(self) -> list[Floats]:
        """Standard deviation in pixels of each coordinate of the box, or of the polygon's points.

        Empty arrays for a model that writes coordinates as text integers, which have no distribution.
        """
        size = np.array([self.width, self.height])
        return [np.array(found.spread) * np.resize(size, len(found.spread)) for found in self.objects]

    def filter(self, score_threshold: float = 0.0, max_objects: int | None = None) -> Detections:
        """The objects with at least this score, and of these at most `max_objects` with the highest scores."""
        kept = [n for n, found in enumerate(self.objects) if found.score >= score_threshold]
        kept = sorted(sorted(kept, key=lambda n: -self.objects[n].score)[:max_objects])
        return replace(self, objects=tuple(self.objects[n] for n in kept))

    def draw(self, *, spread: bool = False, scale: int = 1) -> Image.Image:
        """The image, enlarged `scale` times, with the outline, label and score of each object.

        spread: also a band around each side of a box, one standard deviation to both sides.
        """
        return draw(self.source.load((self.width * scale, self.height * scale)), self.objects, spread=spread)

    def to_json(self) -> str:
        """One line of JSON: the image, its objects with pixels and fractions, the answer and its problems."""
        return msgspec.json.encode(self.to_dict()).decode()

    def to_dict(self) -> dict[str, Any]:
        """The content of `to_json`: numbers, strings, lists and dictionaries."""
        rows = zip(self.objects, self.boxes.tolist(), self.spreads, self.polygons, strict=True)
        objects = [
            {"label": found.desc, "score": found.score, "box": box, "norm": found.norm, "spread": spread.tolist()}
            | ({} if polygon is None else {"polygon": polygon.ravel().tolist()})
            for found, box, spread, polygon in rows
        ]
        image = {"image": self.name, "width": self.width, "height": self.height}
        return {
            **image,
            "objects": objects,
            "answer": self.answer,
            "problems": self.problems,
            "truncated": self.truncated,
        }

    def to_coco(self, image_id: int = 1, categories: Sequence[str] | None = None) -> dict[str, Any]:
        """A COCO dataset of this image, with a score in each annotation; `to_coco` writes several images."""
        return to_coco([self], categories, first_id=image_id)

    def to_supervision(self, categories: Sequence[str] | None = None) -> Any:
        """`supervision.Detections`: `class_id` counts from 0, and `data["class_name"]` holds the labels.

        The ids are positions in `categories`, or among the labels in alphabetical order. There are masks if an object
        has a polygon.
        """
        ids = category_ids([self], categories, first=0)
        masks = [self._mask(n) for n in range(len(self))] if any(found.poly for found in self.objects) else None
        return library("supervision").Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=None if masks is None else np.stack(masks),
            confidence=self.scores.astype(np.float32),
            class_id=np.array([ids[label] for label in self.labels], dtype=int),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """`fiftyone.Detections`, whose boxes are x, y, width and height as fractions; polygons become masks."""
        fiftyone = library("fiftyone", "pip install fiftyone")
        found = []
        for n, (x1, y1, x2, y2) in enumerate(self.norm.tolist()):
            mask = {"mask": self._mask_in_box(n)} if self.objects[n].poly else {}
            box = {"bounding_box": [x1, y1, x2 - x1, y2 - y1], "confidence": self.objects[n].score}
            found.append(fiftyone.Detection(label=self.objects[n].desc, **box, **mask))
        return fiftyone.Detections(detections=found)

    def _mask(self, n: int) -> NDArray[np.bool_]:
        """Pixels of the n-th object, bool [height, width]."""
        canvas = Image.new("1", (self.width, self.height))
        polygon = self.polygons[n]
        if polygon is None:
            x1, y1, x2, y2 = self.boxes[n].tolist()
            polygon = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in polygon.tolist()], fill=1)
        return np.array(canvas)

    def _mask_in_box(self, n: int) -> NDArray[np.bool_]:
        x1, y1, x2, y2 = self.boxes[n]
        left, top = int(x1), int(y1)
        return self._mask(n)[top : max(top + 1, int(np.ceil(y2))), left : max(left + 1, int(np.ceil(x2)))]


def to_coco(
    results: Sequence[Detections], categories: Sequence[str] | None = None, *, first_id: int = 1
) -> dict[str, Any]:
    """A COCO dataset: images with ids from `first_id` on, categories with ids from 1 on, annotations with scores.

    Categories are those in `categories`, in this order, then other labels in alphabetical order.
    """
    ids = category_ids(results, categories, first=1)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, found in enumerate(results, start=first_id):
        images.append({"id": image_id, "file_name": found.name, "width": found.width, "height": found.height})
        for detection, (x1, y1, x2, y2), polygon in zip(
            found.objects, found.boxes.tolist(), found.polygons, strict=True
        ):
            flat = None if polygon is None else polygon.ravel().tolist()
            box = ExportedBox(detection.desc, ids[detection.desc], (x1, y1, x2, y2), detection.score, flat)
            annotations.append(coco_annotation(box, len(annotations) + 1, image_id))
    listed = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "categories": listed, "annotations": annotations}


def category_ids(results: Iterable[Detections], categories: Sequence[str] | None, first: int) -> dict[str, int]:
    """An id from `first` on for each of the categories, and for every other label."""
    names = dict.fromkeys(categories or ())
    names |= dict.fromkeys(sorted({label for found in results for label in found.labels}))
    return {name: number for number, name in enumerate(names, start=first)}
