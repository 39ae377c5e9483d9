"""Detection in image files of any size; boxes are in the pixels of each file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image

from coordexp.answers.inference_settings import InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.datasets.images import ImageError, load_image, upright_size
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.resize import ResizeRule, grid_size
from coordexp.inference import calibrate
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.options import PredictOptions
from coordexp.inference.overrides import resolve
from coordexp.inference.predictor import Predictor
from coordexp.inference.prompts import Prompt, category_prompts
from coordexp.inference.scores import build_prediction
from coordexp.modeling.checkpoint_safety import check_checkpoint
from coordexp.modeling.checksums import verify_checksums
from coordexp.records import Detection, Metadata, Record
from coordexp.runtime.errors import DataError, located

MAX_BLOCKS, MIN_BLOCKS = 768, 4  # budget in tiles of a checkpoint that records none


class ImageDetections(msgspec.Struct, frozen=True):
    """Detections in one image file. `width` and `height` are in pixels, after EXIF rotation."""

    path: str
    width: int
    height: int
    detections: list[Detection]
    text: str
    problems: dict[str, int]

    def boxes(self) -> list[list[float]]:
        """[x1, y1, x2, y2] in pixels of the file, in the order of `detections`."""
        return [self._pixels(d.norm) for d in self.detections]

    def polygons(self) -> list[list[float] | None]:
        """[x, y, x, y, ...] in pixels of the file, in the order of `detections`; None for a box."""
        return [self._pixels(d.poly) if d.poly else None for d in self.detections]

    def _pixels(self, norm: Sequence[float]) -> list[float]:
        return [v * (self.width, self.height)[n % 2] for n, v in enumerate(norm)]


def detect(
    model_dir: str | Path,
    images: Sequence[str | Path],
    categories: Sequence[str] | None = None,
    options: PredictOptions | None = None,
    style: PromptStyle | None = None,
    *,
    max_blocks: int | None = None,
    min_blocks: int | None = None,
    rule: ResizeRule | None = None,
    emit_norm: EmitNorm | None = None,
    calibration: str | Path | None = None,
    polygons: bool = False,
    device: str | None = None,
) -> list[ImageDetections]:
    """Detect objects in image files; returns one result per image, in order.

    categories: names to ask for, `options.chunk` per prompt; default: the open prompt.
    options, style, emit_norm: default to those that the checkpoint was trained with.
    max_blocks, min_blocks, rule: image budget in tiles and resize rule; default to those of the training images. Images
        are converted as in the data stage: EXIF rotation, RGB, and the model's grid.
    calibration: file written by `calibrate.fit`; scores become probabilities.
    polygons: allow polygons as well as boxes; also allowed if the checkpoint was trained with `data.geometry: poly`.

    Values that override those recorded in the checkpoint, and defaults for those that it does not record, are announced
    on stderr. DataError that names the image if one cannot be read.
    """
    check_checkpoint(model_dir)
    verify_checksums(model_dir)
    recorded = settings_of(model_dir, "detect")
    options = _options(options, recorded, polygons=polygons)
    style = resolve("detect", "style", style, recorded.style, None)
    emit_norm = resolve("detect", "emit_norm", emit_norm, recorded.emit_norm, None)
    fitted = calibrate.load(calibration) if calibration else None
    if not images:
        raise DataError("detect: no image given\n  -> pass at least one image file")
    paths = [Path(image) for image in images]
    sizes = [_upright_size(path) for path in paths]
    budget = {
        "max_blocks": resolve("detect", "max_blocks", max_blocks, recorded.max_blocks, MAX_BLOCKS),
        "min_blocks": resolve("detect", "min_blocks", min_blocks, recorded.min_blocks, MIN_BLOCKS),
    }
    rule = resolve("detect", "resize", rule, recorded.resize, "fill")
    predictor = Predictor.from_checkpoint(model_dir, options, style, device)
    budget["factor"] = resolve("detect", "factor", predictor.factor, recorded.factor, None)
    resized = [_on_grid(path, size, rule, budget) for path, size in zip(paths, sizes, strict=True)]
    prompts = category_prompts(list(categories), options) if categories else [Prompt()]
    requests = [(image, prompt) for image in resized for prompt in prompts]
    answers = []
    for start in range(0, len(requests), options.batch_size):
        answers += predictor.answer(*zip(*requests[start : start + options.batch_size], strict=True))
    results = []
    for n, path in enumerate(paths):
        own = [(answer, predictor.text(answer)) for answer in answers[n * len(prompts) : (n + 1) * len(prompts)]]
        record = Record([path.name], *resized[n].size, "pixel", [], Metadata(str(path), *sizes[n]))
        prediction = build_prediction(own, record, options, emit_norm)
        prediction = calibrate.calibrated(prediction, fitted) if fitted else prediction
        found = prediction.detections, prediction.text, prediction.problems
        results.append(ImageDetections(str(path), *sizes[n], *found))
    return results


def _options(options: PredictOptions | None, recorded: InferenceSettings, *, polygons: bool) -> PredictOptions:
    """`options`, by default those that the checkpoint records; with `polygons`, both kinds of geometry."""
    kinds = recorded.geometry or ("bbox_2d",)
    if options is None:
        points = recorded.poly_max_points or PredictOptions().poly_max_points
        options = PredictOptions(temperature=recorded.temperature, geometry=kinds, poly_max_points=points)
    if polygons:
        options = msgspec.structs.replace(options, geometry=("bbox_2d", "poly"))
    for name in ("temperature", "geometry"):
        resolve("detect", name, getattr(options, name), getattr(recorded, name), None)
    return options


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        return upright_size(path)
    except ImageError as error:
        raise _unreadable(path, error) from error


def _on_grid(path: Path, size: tuple[int, int], rule: ResizeRule, budget: dict[str, int]) -> Image.Image:
    """The image of upright `size` (width, height), resized to the model's grid as in conversion."""
    try:
        return load_image(path, size, grid_size(*size, rule, **budget))
    except ImageError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise DataError(located(str(error), file=path)) from error


def _unreadable(path: Path, error: ImageError) -> DataError:
    return DataError(located(f"cannot read the image: {error}", file=path, fix="pass a readable image file"))
