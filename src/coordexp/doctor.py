"""Diagnostics: one record as the model sees it in training, and whether a trained model uses the image."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from coordexp.datasets.images import ImageError, open_image
from coordexp.geometry import boxes, norm1000
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.draw import draw, save_drawing
from coordexp.modeling.checkpoint_safety import check_checkpoint, library_errors
from coordexp.modeling.checksums import verify_checksums
from coordexp.modeling.families import family_of
from coordexp.recipe import Custom, checkpoint_custom
from coordexp.records import Detection, Record, coord_bin, decode_record, read_records
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import enumerate_lines
from coordexp.training.ms_swift.custom_section import VARIABLE

if TYPE_CHECKING:
    from coordexp.evaluation.image_use import AnswerUse, ImageUse


def examine(
    file: Path, index: int, model_dir: Path, custom: Custom, out: Path | None = None, epoch: int | None = None
) -> dict[str, Any]:
    """Encode record `index` (from 0) of `file` with the `custom` section of a recipe and the tokenizer of a model.

    Returns `prompt`, `answer`, `tokens` as [id, text, supervised], and `boxes`: those decoded from the coordinate
    tokens (pixel of the encoded image) with their IoU with the unquantised boxes. `out` is an image file in which the
    boxes are drawn. With `epoch`, the record is augmented as in that epoch. DataError for an invalid record.
    """
    check_checkpoint(model_dir)
    verify_checksums(model_dir)
    record = nth_record(file, index)
    in_tokens = msgspec.structs.replace(custom.coord_tokens, skip_bbox_norm=record.coord_space == "token")
    custom = msgspec.structs.replace(custom, coord_tokens=in_tokens)
    encoded, tokenizer, shown, changed = _encode(record, file, index, model_dir, custom, epoch)
    ids, labels = encoded["input_ids"], encoded["labels"]
    first = next(i for i, label in enumerate(labels) if label != -100)
    back = [norm1000.decode([coord_bin(token) for token in obj.coords]) for obj in shown.objects]
    detections = [
        Detection(obj.desc, _bounds(coords), 1.0, poly=coords.tolist() if obj.poly is not None else None)
        for obj, coords in zip(shown.objects, back, strict=True)
    ]
    if out is not None:
        save_drawing(draw(changed or _stored_image(file.parent / record.images[0]), detections), out)
    size = np.array([shown.width, shown.height] * 2)
    return {
        "prompt": _count_repeats(tokenizer.decode(ids[:first]), family_of(model_dir).tokens.image_pad),
        "answer": tokenizer.decode(ids[first:]),
        "tokens": [[i, tokenizer.decode([i]), label != -100] for i, label in zip(ids, labels, strict=True)],
        "boxes": [
            {
                "desc": d.desc,
                "pixel": (np.array(d.norm) * size).round(2).tolist(),
                "iou": round(boxes.iou(np.array([d.norm]), np.array([obj.norm_box]))[0, 0].item(), 4),
            }
            for d, obj in zip(detections, shown.objects, strict=True)
        ],
    }


def image_use(file: Path, count: int, model_dir: Path) -> tuple[ImageUse, AnswerUse]:
    """Measure with the first `count` records of `file` (pixel space) whether a merged checkpoint uses the image.

    Returns results for annotated coordinates and for the answers to the records with objects. Codec, style and prompts
    are those that the checkpoint was trained with.
    """
    from coordexp.inference.image_use import answer_swapped_images, measure_image_use, score_swapped_images
    from coordexp.inference.options import PredictOptions
    from coordexp.inference.predictor import Predictor
    from coordexp.training.eval_callback import categories_of, prompts_like_training

    records = list(itertools.islice(read_records(file, "pixel"), max(count, 0)))
    settings, custom = settings_of(model_dir, "doctor"), checkpoint_custom(model_dir)
    options = PredictOptions(temperature=settings.temperature, **prompts_like_training(custom))
    predictor = Predictor.from_checkpoint(model_dir, options, settings.style)
    table = categories_of(records, None)
    names = custom.named_categories or [category.name for category in table]
    coordinates = measure_image_use(predictor, records, file.parent, settings.emit_norm, names)
    records = [r for r in records if r.objects and (r.phrases or options.protocol != "phrases")]
    swapped = answer_swapped_images(predictor, records, file.parent, settings.emit_norm, names)
    return coordinates, score_swapped_images(swapped, table)


def _stored_image(path: Path) -> Image.Image:
    """The image of a record; DataError if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.convert("RGB")
    except ImageError as error:
        raise DataError(located(f"cannot read the image: {error}", file=path)) from error


def nth_record(file: Path, index: int) -> Record:
    """Record `index` (from 0) of a JSONL file in any coordinate space; DataError if the file has fewer records."""
    for position, (number, line) in enumerate(enumerate_lines(file)):
        if position == index:
            return decode_record(line, file, number)
    raise DataError(f"{file}: there is no record {index}\n  -> indices start at 0")


def _encode(
    record: Record, file: Path, index: int, model_dir: Path, custom: Custom, epoch: int | None
) -> tuple[dict, Any, Record, Image.Image | None]:
    os.environ[VARIABLE] = json.dumps(msgspec.to_builtins(custom))
    os.environ.setdefault("IMAGE_MIN_TOKEN_NUM", "1")
    from swift.model import get_processor
    from swift.template import get_template

    from coordexp.datasets.samples import Sample
    from coordexp.training.augmentation import augment
    from coordexp.training.ms_swift import model_loader, template

    template.register()
    model_loader.register()
    names = family_of(model_dir).swift
    with library_errors("load the processor", model_dir):
        processor = get_processor(str(model_dir), model_type=names.our_model_type)
        encoder = get_template(processor, template_type=names.our_template, truncation_strategy="raise")
    encoder.set_mode("train")
    sample, image = Sample(record, file, f"{file}:{record.metadata.image_id}", {}, None), None
    if epoch is not None:
        seed = (custom.sample_seed, epoch, index)
        sample, image, _ = augment(sample, custom.augmentation, seed, encoder.tile, "random")
    sample = sample._replace(record=template.as_tokens(sample.record))
    return encoder.encode_sample(sample, image), encoder.tokenizer, sample.record, image


def _count_repeats(text: str, token: str) -> str:
    """`text` with each run of `token` written as `token xN`."""
    return re.sub(f"({re.escape(token)})+", lambda run: f"{token} x{len(run[0]) // len(token)}", text)


def _bounds(coords: np.ndarray) -> list[float]:
    xs, ys = coords[0::2], coords[1::2]
    return [float(v) for v in (xs.min(), ys.min(), xs.max(), ys.max())]
