"""Detection during training: AP and F1 of the model with the same decoder and evaluation as the final result.

Ground truth are the objects of the records, in pixels of the source image. Records lack annotations that training does
not need, so the values may differ slightly from eval.json, which uses the benchmark's annotation file.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from coordexp.datasets.categories import Category
from coordexp.datasets.samples import read_category_table
from coordexp.evaluation.evaluate import score
from coordexp.evaluation.ground_truth import GroundTruth, ground_truth_from_records
from coordexp.evaluation.image_use import ImageUse, caution, combined
from coordexp.evaluation.metrics import PHRASE_PREFIX, VALUE_NAMES
from coordexp.evaluation.options import PHRASES, EvaluateOptions
from coordexp.evaluation.results import Counts
from coordexp.inference.image_use import answer_swapped_images, measure_image_use, score_swapped_images
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict_records
from coordexp.inference.predictor import Predictor, local_processor
from coordexp.inference.prompts import check_category_grids
from coordexp.modeling.vocab import verified_ids
from coordexp.recipe import Custom
from coordexp.records import Prediction, Record, read_records
from coordexp.runtime.errors import ConfigError, located
from coordexp.training.scorer import Scorer


class DetectionScorer(Scorer):
    """Predicts the first `detection_eval.images` of `val_jsonl` and scores them."""

    def __init__(self, custom: Custom, model_dir: Path):
        """ConfigError without `val_jsonl`, or if these images have no objects."""
        if not custom.val_jsonl:
            fix = "name the file (--val-jsonl), or set custom.detection_eval.every: 0"
            raise ConfigError(located("needs custom.val_jsonl", field="custom.detection_eval", fix=fix))
        self.custom, settings = custom, custom.detection_eval
        path = Path(custom.val_jsonl)
        self.folder = path.parent
        space = "token" if custom.coord_tokens.skip_bbox_norm else "pixel"
        self.records = list(islice(read_records(path, space), settings.images))
        if custom.evaluates_phrases and not any(record.phrases for record in self.records):
            problem = f"the first {len(self.records)} images have no phrases to evaluate on"
            raise ConfigError(located(problem, file=path, field="phrases"))
        if not any(record.objects for record in self.records):
            problem = f"the first {len(self.records)} images have no objects to evaluate on"
            raise ConfigError(located(problem, file=path, field="objects"))
        federated = any(record.metadata.neg_category_ids for record in self.records)
        categories = categories_of(self.records, custom.categories)
        self.ground_truth = ground_truth_from_records(self.records, categories, federated=federated, path=path)
        self.processor = local_processor(model_dir)
        self.ids = verified_ids(model_dir) if custom.coord_tokens.enabled else None
        self.options = PredictOptions(
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            slices=settings.slices,
            temperature=custom.loss.temperature,
            geometry=geometry_kinds(self.records),
            poly_max_points=max_polygon_points(self.records),
            **prompts_like_training(custom, 0 if federated else len(categories)),
        )
        self.categories = [category.name for category in categories]
        check_category_grids(self.options, self.categories)
        self.table = categories
        count = min(settings.train_images, settings.images) if custom.train_jsonl else 0
        self.train_records = list(islice(read_records(custom.train_jsonl, space), count)) if count else []
        if custom.evaluates_phrases:
            self.train_records = [record for record in self.train_records if record.phrases]
        if not any(record.objects for record in self.train_records):
            self.train_records = []
        self._predictor: Predictor | None = None

    def _predictor_of(self, model: nn.Module) -> Predictor:
        """A predictor with `model`; kept for further evaluations of the same one, with the compiled grammars."""
        if self._predictor is None or self._predictor.model is not model:
            self._predictor = Predictor(model, self.processor, self.ids, self.options, self.custom.style)
        return self._predictor

    def predict(self, model: nn.Module, rank: int, world_size: int) -> list[Prediction]:
        """Predictions for every `world_size`-th record from `rank` on."""
        records = self.records[rank::world_size]
        return predict_records(self._predictor_of(model), records, self.folder, self.custom.emit_norm, self.categories)

    def score(self, predictions: list[Prediction]) -> dict[str, float | None]:
        """Every metric that may select a checkpoint, and duplicates; LVIS rules if records list absent categories."""
        values, counts = _scored(predictions, self.ground_truth)
        return values | {
            "duplicates_per_image": counts.duplicates / counts.images,
            "near_duplicates_per_image": counts.near_duplicates / counts.images,
        }

    def diagnose(self, model: nn.Module, rank: int, world_size: int) -> list[Any]:
        """Predictions for training images, the likelihood of coordinates, and answers to swapped images."""
        predictor = self._predictor_of(model)
        shared = (self.custom.emit_norm, self.categories)
        measured: list[Any] = []
        if records := self.train_records[rank::world_size]:
            assert self.custom.train_jsonl is not None
            folder = Path(self.custom.train_jsonl).parent
            measured += predict_records(predictor, records, folder, *shared)
        if self.options.protocol == PHRASES:
            with_objects = [record for record in self.records if any(phrase.objects for phrase in record.phrases)]
        else:
            with_objects = [record for record in self.records if record.objects]
        records = with_objects[: self.custom.detection_eval.image_use][rank::world_size]
        if len(records) < 2:
            return measured
        measured += answer_swapped_images(predictor, records, self.folder, *shared)
        if self.ids is not None:
            measured.append(measure_image_use(predictor, records, self.folder, *shared))
        return measured

    def diagnostics(self, measured: list[Any]) -> dict[str, float | None]:
        """Metrics on training images (`train_AP`), and what changes with another and with a blank image."""
        values: dict[str, float | None] = {}
        if predictions := [item for item in measured if isinstance(item, Prediction)]:
            federated = self.ground_truth.federated
            path = Path(self.custom.train_jsonl or "records")
            truth = ground_truth_from_records(
                self.train_records,
                categories_of(self.train_records, self.custom.categories),
                federated=federated,
                path=path,
            )
            scored, _ = _scored(predictions, truth)
            values |= {f"train_{name}": value for name, value in scored.items()}
        if swapped := [item for item in measured if isinstance(item, tuple)]:
            answers = score_swapped_images(swapped, self.table)
            metric = f"{PHRASE_PREFIX}exact_50" if self.options.protocol == PHRASES else "AP"
            values |= {
                f"{metric}_right_image": answers.right,
                f"{metric}_other_image": answers.other,
                f"{metric}_blank_image": answers.blank,
            }
            values["answer_agreement"] = answers.agreement
        if parts := [item for item in measured if isinstance(item, ImageUse)]:
            use = combined(parts)
            values |= {"logprob_right_image": use.right, "logprob_other_image": use.other}
            values |= {"logprob_blank_image": use.blank, "image_gain": use.gain}
        return values

    def caution(self, values: dict[str, float | None]) -> str | None:
        """A sentence about a model that does not use the image."""
        return caution(values.get("image_gain"), values.get("answer_agreement"))


def _scored(predictions: list[Prediction], ground_truth: GroundTruth) -> tuple[dict[str, float | None], Counts]:
    protocol = "lvis" if ground_truth.federated else "coco"
    options = EvaluateOptions(protocols=(protocol,), bootstrap=0, examples=0)
    rows = [(f"prediction {n}", prediction) for n, prediction in enumerate(predictions)]
    scores = score(rows, ground_truth, options, where="predictions during training")
    if scores.phrases is not None:
        return {f"{PHRASE_PREFIX}{name}": value for name, value in scores.phrases.metrics.items()}, scores.counts
    metrics = scores.protocols[protocol].metrics
    return {name: metrics[name] for name in VALUE_NAMES.names()}, scores.counts


def prompts_like_training(custom: Custom, exhaustive: int = 0) -> dict[str, Any]:
    """Prediction options with prompts of training: of phrases, with categories if all samples have them, or open.

    exhaustive: number of categories if they are annotated exhaustively; 0 if they are not, or if it is unknown.
    """
    if custom.evaluates_phrases:
        return {"protocol": "phrases"}
    if custom.category_ratio < 1:
        return {"protocol": "open"}
    if custom.max_named is None and custom.named_categories is None and 0 < exhaustive <= custom.negatives:
        return {"protocol": "all_categories", "chunk": exhaustive}  # as in training, absent categories are named too
    if custom.max_named is None:
        return {"protocol": "image_categories"}
    return {"protocol": "all_categories", "chunk": custom.max_named, "restrict_labels": custom.coord_tokens.enabled}


def categories_of(records: Iterable[Record], table: str | None) -> list[Category]:
    """Categories by the text that the model reads: of the recipe's table, or of the objects if there is none."""
    if table:
        names = read_category_table(table).names
    else:
        names = {obj.category_id: obj.desc for record in records for obj in record.objects}
    return [Category(category_id, name) for category_id, name in names.items()]


def max_polygon_points(records: Iterable[Record]) -> int:
    """Most points of a polygon in the records, at least 3."""
    return max((len(obj.poly) // 2 for record in records for obj in record.objects if obj.poly), default=3)


def geometry_kinds(records: Iterable[Record]) -> tuple[str, ...]:
    """Kinds of geometry in the records, which are those that an answer may contain."""
    objects = [obj for record in records for obj in record.objects]
    present = {"bbox_2d": any(obj.bbox_2d is not None for obj in objects), "poly": any(obj.poly for obj in objects)}
    return tuple(kind for kind, is_present in present.items() if is_present)
