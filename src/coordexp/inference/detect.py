"""Detection in loose images: whatever size they have, boxes come back in their own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.datasets import images as image_files
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.resize import Rule, grid_size
from coordexp.inference import calibrate
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import combine
from coordexp.inference.predictor import Checkpoint
from coordexp.inference.prompts import Question, listed_questions
from coordexp.recipe import checkpoint_custom
from coordexp.records import Detection, Metadata, Record
from coordexp.runtime.errors import DataError, located


class Found(msgspec.Struct, frozen=True):
    """What was found in one image. `width` and `height` are pixels of the image as it is looked at."""

    path: str
    width: int
    height: int
    detections: list[Detection]
    text: str
    problems: dict[str, int]

    def boxes(self) -> list[list[float]]:
        """[x1, y1, x2, y2] in pixels of the image, in the order of `detections`."""
        return [self._pixels(d.norm) for d in self.detections]

    def polygons(self) -> list[list[float] | None]:
        """[x, y, x, y, ...] in pixels of the image, in the order of `detections`; None for one that is a box."""
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
    max_blocks: int = 768,
    min_blocks: int = 4,
    rule: Rule = "fill",
    emit_norm: EmitNorm | None = None,
    calibration: str | Path | None = None,
    polygons: bool = False,
    device: str | None = None,
) -> list[Found]:
    """Objects in the images `images`, in their order.

    Images are prepared as conversion does: upright (EXIF), RGB, on the model's grid within `max_blocks` tiles
    by `rule`. They are asked the open prompt, or for `categories`, `options.chunk` at a time. Style, codec and
    temperature are those that the checkpoint was trained by unless given. With `polygons` answers may hold them
    beside boxes, as one that learnt from `data.geometry: poly` gives them. `calibration` is a file of
    `calibrate.fit`. Errors name the image.
    """
    custom = checkpoint_custom(model_dir)
    options = options or PredictOptions(temperature=custom.loss.temperature)
    if polygons:
        options = msgspec.structs.replace(options, geometry=("bbox_2d", "poly"))
    style, emit_norm = style or custom.style, emit_norm or custom.emit_norm
    learnt = calibrate.load(calibration) if calibration else None
    if not images:
        raise DataError("detect: no image given\n  -> name at least one image file")
    paths = [Path(image) for image in images]
    sizes = [_upright_size(path) for path in paths]
    checkpoint = Checkpoint(model_dir, options, style, device)
    budget = {"factor": checkpoint.factor, "max_blocks": max_blocks, "min_blocks": min_blocks}
    resized = [_on_grid(path, size, rule, budget) for path, size in zip(paths, sizes, strict=True)]
    asked = listed_questions(list(categories), options) if categories else [Question(None, None)]
    jobs = [(pixels, question) for pixels in resized for question in asked]
    answers = []
    for start in range(0, len(jobs), options.batch_size):
        answers += checkpoint.answer(*zip(*jobs[start : start + options.batch_size], strict=True))
    found = []
    for n, path in enumerate(paths):
        own = [(answer, checkpoint.text(answer)) for answer in answers[n * len(asked) : (n + 1) * len(asked)]]
        record = Record([path.name], *resized[n].size, "pixel", [], Metadata(str(path), *sizes[n]))
        row = combine(own, record, options, emit_norm)
        row = calibrate.calibrated(row, learnt) if learnt else row
        found.append(Found(str(path), *sizes[n], row.detections, row.text, row.problems))
    return found


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        return image_files.upright_size(path)
    except image_files.ImageError as error:
        raise _unreadable(path, error) from error


def _on_grid(path: Path, size: tuple[int, int], rule: Rule, budget: dict[str, int]) -> Image.Image:
    """The image of upright `size` (width, height), in pixels as conversion prepares them."""
    try:
        return image_files.load(path, size, grid_size(*size, rule, **budget))
    except image_files.ImageError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise DataError(located(str(error), file=path)) from error


def _unreadable(path: Path, error: image_files.ImageError) -> DataError:
    return DataError(located(f"cannot read the image: {error}", file=path, fix="give a image file that opens"))
