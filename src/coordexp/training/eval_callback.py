"""AP and F1 of a model in training, by the decoder and the evaluation that judge it in the end.

The truth is the records' own objects, in pixels of the source image. A record keeps what training needs, so the
number may differ a little from eval.json's, which reads the benchmark's annotations.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from torch import nn
from transformers import AutoProcessor

from coordexp.datasets.categories import Category
from coordexp.datasets.samples import read_category_table
from coordexp.evaluation import EvaluateOptions
from coordexp.evaluation.evaluate import score
from coordexp.evaluation.ground_truth import ground_truth_from_records
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict_records
from coordexp.inference.predictor import Predictor
from coordexp.modeling.vocab import verified_ids
from coordexp.recipe import Custom
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import ConfigError, located
from coordexp.training.ms_swift.best_checkpoint import Scorer


class DetectionScorer(Scorer):
    """Asks the open prompt about the first `detection_eval.images` of `val_jsonl`, read around the mode (`local`)."""

    def __init__(self, custom: Custom, model_dir: Path):
        if not custom.val_jsonl:
            fix = "name the file (--val-jsonl), or set custom.detection_eval.every: 0"
            raise ConfigError(located("needs custom.val_jsonl", field="custom.detection_eval", fix=fix))
        self.custom, settings = custom, custom.detection_eval
        self.folder = Path(custom.val_jsonl).parent
        space = "token" if custom.coord_tokens.skip_bbox_norm else "pixel"
        self.records = list(islice(read_records(custom.val_jsonl, space), settings.images))
        if not any(record.objects for record in self.records):
            raise ConfigError(located("no object in these images", file=custom.val_jsonl, field="objects"))
        facts = [record.metadata for record in self.records]
        federated = any(m.neg_category_ids for m in facts)
        categories = categories_of(self.records, custom.categories)
        path = Path(custom.val_jsonl)
        self.ground_truth = ground_truth_from_records(self.records, categories, federated=federated, path=path)
        self.processor = AutoProcessor.from_pretrained(model_dir)
        self.ids = verified_ids(model_dir) if custom.coord_tokens.enabled else None
        self.options = PredictOptions(
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=custom.loss.temperature,
            geometry=kinds_of(self.records),
            poly_max_points=longest(self.records),
            protocol="image_categories" if custom.category_ratio == 1 else "open",  # what it is taught to answer
        )

    def answer(self, model: nn.Module, share: int, shares: int) -> list[Prediction]:
        """As `Scorer` says."""
        predictor = Predictor(model, self.processor, self.ids, self.options, self.custom.style)
        return predict_records(predictor, self.records[share::shares], self.folder, self.custom.emit_norm)

    def score(self, answers: list[Prediction]) -> dict[str, float]:
        """AP, AP50 and micro F1 (mean over IoU .5:.95); federated where the records name verified absent categories."""
        protocol = "lvis" if self.ground_truth.federated else "coco"
        options = EvaluateOptions(protocols=(protocol,), bootstrap=0, examples=0)
        rows = [(f"answer {n}", answer) for n, answer in enumerate(answers)]
        scores = score(rows, self.ground_truth, options, where="predictions during training")
        metrics = scores.protocols[protocol].metrics
        return {"AP": metrics["AP"], "AP50": metrics["AP50"], "F1": metrics["F1_micro"]}


def categories_of(records: Iterable[Record], table: str | None) -> list[Category]:
    """Categories by the text that the model reads: of the recipe's table, or of the records without one."""
    if table:
        names = read_category_table(table).names
    else:
        names = {obj.category_id: obj.desc for record in records for obj in record.objects}
    return [Category(category_id, name) for category_id, name in names.items()]


def longest(records: Iterable[Record]) -> int:
    """Most points of a polygon in the records, at least the three that make one."""
    return max((len(obj.poly) // 2 for record in records for obj in record.objects if obj.poly), default=3)


def kinds_of(records: Iterable[Record]) -> tuple[str, ...]:
    """Kinds of geometry that the records hold, which answers may hold then."""
    objects = [obj for record in records for obj in record.objects]
    held = {"bbox_2d": any(obj.bbox_2d is not None for obj in objects), "poly": any(obj.poly for obj in objects)}
    return tuple(kind for kind, present in held.items() if present)
