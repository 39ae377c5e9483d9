"""Detection in images of any size by a checkpoint that stays loaded; boxes are in the pixels of each image."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import msgspec

from coordexp.answers.inference_settings import InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.datasets.samples import SampleOptions
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.resize import ResizeRule, grid_size
from coordexp.geometry.slices import SliceOptions
from coordexp.inference import calibrate
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.engines import check_engine, open_predictor
from coordexp.inference.image_detections import Detections
from coordexp.inference.image_sources import ImageInput, ImageSource, image_sources
from coordexp.inference.jobs import ImageTask, jobs_of, run_jobs
from coordexp.inference.options import Engine, PredictOptions
from coordexp.inference.overrides import announce, resolve
from coordexp.inference.predictor import BasePredictor
from coordexp.inference.prompts import Prompt, category_prompts, open_prompt, phrase_prompts
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.checksums import verify_checksums
from coordexp.modeling.hub import checkpoint_folder
from coordexp.recipe import checkpoint_custom
from coordexp.records import Metadata, Prediction, Record
from coordexp.runtime.errors import ConfigError, DataError, located

MAX_BLOCKS, MIN_BLOCKS = 768, 4  # budget in tiles of a checkpoint that records none


class Detector:
    """A merged checkpoint, loaded once, that detects objects in images.

    model: folder of a merged checkpoint, or `owner/name` of one on the Hugging Face Hub.
    revision: branch, tag or commit of a model on the hub.
    device: `cpu`, `cuda`, `cuda:1`, ...; default: the GPU, if any.
    max_blocks, min_blocks, resize: image budget in tiles and resize rule; default to those of the training images.
        Images are converted as in the data stage: EXIF rotation, RGB, and the model's grid.
    polygons: allow polygons as well as boxes; also allowed if the checkpoint was trained with `data.geometry: poly`.
    calibration: file written by `calibrate.fit`; scores become probabilities.
    options, style, emit_norm: default to those that the checkpoint was trained with, and of `options` those that scores
        depend on to those that the calibration was fitted with. DataError if they contradict the calibration.
    slices: detect objects in overlapping slices of each image, taken from it in its own size, and merge them;
        `slices.max_blocks` defaults to `max_blocks`.
    engine: `transformers` (default), or `vllm` where it is installed; see docs/serving.md.
    lazy: load the weights at the first detection; the checkpoint is checked at once.

    Values that override those recorded in the checkpoint, and defaults for those that it does not record, are announced
    on stderr. ModelError for a checkpoint that cannot be used.

    >>> from coordexp import Detector
    >>> detector = Detector("results/shapes_9/merged")
    >>> [found] = detector.detect("street.jpg", categories=["car", "person"], score_threshold=0.3)
    >>> found.boxes, found.labels, found.scores
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        max_blocks: int | None = None,
        min_blocks: int | None = None,
        resize: ResizeRule | None = None,
        polygons: bool = False,
        calibration: str | Path | None = None,
        options: PredictOptions | None = None,
        slices: SliceOptions | None = None,
        style: PromptStyle | None = None,
        emit_norm: EmitNorm | None = None,
        engine: Engine | None = None,
        lazy: bool = False,
    ) -> None:
        self.folder = check_checkpoint(checkpoint_folder(model, revision))
        self.device = device
        verify_checksums(self.folder)
        recorded = settings_of(self.folder, "detect")
        self.calibration = calibrate.load(calibration) if calibration else None
        fitted = self.calibration.options if self.calibration else None
        self.options = _options(options, recorded, fitted, polygons=polygons, engine=engine)
        check_engine(self.options)
        self.style: PromptStyle = resolve("detect", "style", style, recorded.style, None)
        self.emit_norm: EmitNorm = resolve("detect", "emit_norm", emit_norm, recorded.emit_norm, None)
        self.max_blocks: int = resolve("detect", "max_blocks", max_blocks, recorded.max_blocks, MAX_BLOCKS)
        self.min_blocks: int = resolve("detect", "min_blocks", min_blocks, recorded.min_blocks, MIN_BLOCKS)
        self.resize: ResizeRule = resolve("detect", "resize", resize, recorded.resize, "fill")
        if slices := slices or self.options.slices:
            slices = msgspec.structs.replace(slices, max_blocks=slices.max_blocks or self.max_blocks)
            self.options = msgspec.structs.replace(self.options, slices=slices)
            if slices.score == "mean" and self.calibration and self.calibration.method == "logistic":
                fix = "use score: best, or an isotonic calibration"
                raise ConfigError(
                    located("a logistic calibration replaces the mean score", field="slices.score", fix=fix)
                )
        if self.calibration and calibration:
            self.calibration.check(self.options, calibration)
        self._recorded_factor = recorded.factor
        self._trained_prompts = _trained_prompts(self.folder)
        if not lazy:
            _ = self._predictor

    @cached_property
    def _predictor(self) -> BasePredictor:
        predictor = open_predictor(self.folder, self.options, self.style, self.device)
        resolve("detect", "factor", predictor.factor, self._recorded_factor, None)
        return predictor

    @property
    def names_categories(self) -> bool | None:
        """Whether the training had prompts that name categories; None if the checkpoint does not record its recipe."""
        return self._trained_prompts.category_ratio > 0 if self._trained_prompts else None

    def detect(
        self,
        images: ImageInput | Iterable[ImageInput],
        categories: str | Sequence[str] | None = None,
        *,
        phrases: str | Sequence[str] | None = None,
        score_threshold: float = 0.0,
        max_objects: int | None = None,
        allow_urls: bool = False,
    ) -> list[Detections]:
        """The objects in each image, one result per image and in their order.

        images: one image or several: paths, folders (all images directly in it, by name), PIL images, or uint8 arrays
            (RGB, channels last); also URLs if `allow_urls`.
        categories: names to ask for, `options.chunk` per prompt; one text is one name. Default: the open prompt, every
            object; ConfigError with `options.restrict_labels`, which needs the names.
        phrases: ask for the objects of each phrase with a prompt of its own instead. An object is labelled with the
            phrase that it answers; a phrase may have one, several or no objects.
        score_threshold, max_objects: keep objects with at least this score, and of these the best.

        Images are processed in batches of `options.batch_size`. DataError that names the image if one cannot be read;
        if its header shows this, before the first detection.
        """
        return list(
            self.stream(
                images,
                categories,
                phrases=phrases,
                score_threshold=score_threshold,
                max_objects=max_objects,
                allow_urls=allow_urls,
            )
        )

    def stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        categories: str | Sequence[str] | None = None,
        *,
        phrases: str | Sequence[str] | None = None,
        score_threshold: float = 0.0,
        max_objects: int | None = None,
        allow_urls: bool = False,
    ) -> Iterator[Detections]:
        """`detect`, yielding each result as soon as it and those before it are finished."""
        sources = image_sources(images, allow_urls=allow_urls)
        finished: dict[int, Prediction] = {}
        following = 0
        for rows in self.predictions(sources, categories, phrases=phrases):
            finished |= dict(rows)
            while following in finished:
                found = self._detections(sources[following], finished.pop(following))
                yield found.filter(score_threshold, max_objects)
                following += 1

    def predictions(
        self,
        sources: Sequence[ImageSource],
        categories: str | Sequence[str] | None = None,
        *,
        phrases: str | Sequence[str] | None = None,
        ids: Sequence[int | str] | None = None,
        done: Container[int] = (),
    ) -> Iterator[list[tuple[int, Prediction]]]:
        """(position, prediction) of each image as it is finished, in any order; those in `done` are left out.

        ids: image ids of the predictions; default: the positions.
        """
        prompts = self._prompts(categories, phrases)
        records = {n: self._record(ids[n] if ids else n, source) for n, source in enumerate(sources) if n not in done}
        tasks = (
            ImageTask(n, record, prompts, partial(sources[n].load, (record.width, record.height)))
            for n, record in records.items()
        )
        jobs = jobs_of(tasks, self._predictor.options)
        protocol = self.options.protocol if phrases is None else "phrases"
        for rows in run_jobs(self._predictor, jobs, self.emit_norm) if jobs else ():
            yield [(n, msgspec.structs.replace(self._calibrated(p), protocol=protocol)) for n, p in rows]

    def _prompts(self, categories: str | Sequence[str] | None, phrases: str | Sequence[str] | None) -> list[Prompt]:
        """The prompts about every image; ConfigError for categories and phrases together, or missing categories."""
        if categories is not None and phrases is not None:
            problem = "categories and phrases are mutually exclusive"
            raise ConfigError(located(problem, found=[categories, phrases], fix="ask for them in two calls"))
        trained = self._trained_prompts
        if categories is not None and self.names_categories is False:
            message = "the checkpoint was trained without prompts that name categories (custom.category_ratio: 0)"
            announce("detect", message)
        if phrases is not None and trained and not trained.phrase_ratio:
            announce(
                "detect", "the checkpoint was trained without prompts that ask for phrases (custom.phrase_ratio: 0)"
            )
        if phrases is not None:
            return phrase_prompts(_names(phrases, "phrases"))
        return [open_prompt(self.options)] if categories is None else category_prompts(_names(categories), self.options)

    def _calibrated(self, prediction: Prediction) -> Prediction:
        return calibrate.calibrated(prediction, self.calibration) if self.calibration else prediction

    def _record(self, image_id: int | str, source: ImageSource) -> Record:
        """The record of an image, in the size that the model sees; of one to be sliced, in its own size."""
        if self.options.slices is not None:
            return Record([source.name], *source.size, "pixel", [], Metadata(image_id, *source.size))
        factor = self._predictor.factor
        budget = {"factor": factor, "max_blocks": self.max_blocks, "min_blocks": self.min_blocks}
        try:
            size = grid_size(*source.size, self.resize, **budget)
        except ValueError as error:
            raise DataError(located(str(error), file=source.name)) from error
        return Record([source.name], *size, "pixel", [], Metadata(image_id, *source.size))

    def _detections(self, source: ImageSource, prediction: Prediction) -> Detections:
        return Detections(
            name=source.name,
            width=source.size[0],
            height=source.size[1],
            objects=tuple(prediction.detections),
            answer=prediction.text,
            problems=prediction.problems,
            truncated=prediction.finish == "length",
            source=source,
        )


def _trained_prompts(folder: Path) -> SampleOptions | None:
    """How prompts were drawn in training; None if the checkpoint does not record its recipe."""
    if not (folder / "merge_manifest.json").is_file():
        return None
    return checkpoint_custom(folder).samples


def _names(given: str | Sequence[str], kind: str = "categories") -> list[str]:
    """The texts to ask for, without repetitions; ConfigError for none, an empty one, or one with a special token."""
    names = [given] if isinstance(given, str) else list(given)
    bad = [name for name in names if not name.strip() or "<|" in name]
    if bad or not names:
        expected = "texts without '<|', or None to detect every object"
        raise ConfigError(located(f"invalid {kind}", expected=expected, found=bad[0] if bad else names))
    return list(dict.fromkeys(names))


def _options(
    options: PredictOptions | None,
    recorded: InferenceSettings,
    fitted: PredictOptions | None,
    *,
    polygons: bool,
    engine: Engine | None,
) -> PredictOptions:
    """`options`, by default those `fitted` or recorded by the checkpoint; with `polygons`, both kinds of geometry."""
    kinds = recorded.geometry or ("bbox_2d",)
    if options is None:
        points = recorded.poly_max_points or PredictOptions().poly_max_points
        options = fitted or PredictOptions(temperature=recorded.temperature, geometry=kinds)
        options = msgspec.structs.replace(options, poly_max_points=points)
    if polygons:
        options = msgspec.structs.replace(options, geometry=("bbox_2d", "poly"))
    if engine is not None:
        options = msgspec.structs.replace(options, engine=engine)
    for name in ("temperature", "geometry"):
        resolve("detect", name, getattr(options, name), getattr(recorded, name), None)
    return options
