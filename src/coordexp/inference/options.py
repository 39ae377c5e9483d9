"""Options of prediction and calibration: sections `predict` and `calibrate` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.answers.render import PromptStyle
from coordexp.geometry.slices import SliceOptions
from coordexp.inference.coordinates import CoordinateOptions
from coordexp.runtime.errors import ConfigError, located

CalibrationMethod = Literal["logistic", "isotonic"]
Engine = Literal["transformers", "vllm"]
Protocol = Literal["open", "all_categories", "image_categories", "phrases"]
Kinds = tuple[Literal["bbox_2d", "poly"], ...]


class PredictOptions(CoordinateOptions, frozen=True, forbid_unknown_fields=True):
    """Which prompts are used, how answers are decoded, and where an answer is truncated.

    Build it from the configuration with `msgspec.convert(config["predict"], PredictOptions)`. The options of
    coordinates, `decode` among them, are inherited from `CoordinateOptions`.
    """

    split: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
            title="role or split name",
            description="split that the workflow predicts and reports on: a role (`train`, `val` or `test`, see "
            "`data.roles`) or the name of a split, optionally with the suffix `_tiny`; only the workflow uses it",
        ),
    ] = "val"
    protocol: Annotated[
        Protocol,
        Meta(
            description="`open`: the prompt names no category; `all_categories`: it names every category of the "
            "dataset, `chunk` at a time; `image_categories`: it names the categories annotated in the image; "
            "`phrases`: one prompt per phrase of the image, which is the only description allowed in its answer"
        ),
    ] = "open"
    engine: Annotated[
        Engine,
        Meta(
            description="engine that runs the model: `transformers`, or `vllm` in its own environment "
            "(docs/serving.md); grammar, coordinates and scores are the same"
        ),
    ] = "transformers"
    batch_size: Annotated[
        int, Meta(ge=1, description="answers decoded at the same time; halved when memory runs out")
    ] = 16
    max_new_tokens: Annotated[
        int, Meta(ge=1, description="longest answer in tokens, including tokens that the grammar forces")
    ] = 4096
    shards: Annotated[int, Meta(ge=1, description="number of jobs that the images are divided among")] = 1
    chunk: Annotated[int, Meta(ge=1, description="categories per prompt, for `protocol: all_categories`")] = 80
    slices: Annotated[
        SliceOptions | None,
        Meta(
            description="predict overlapping slices of each image and merge their detections, for objects that are "
            "small in the whole image; null: predict the whole image only"
        ),
    ] = None
    restrict_labels: Annotated[
        bool,
        Meta(description="allow only category names as descriptions: those in the prompt, or all if it names none"),
    ] = False
    geometry: Annotated[Kinds, Meta(description="geometry types that an answer may contain")] = ("bbox_2d",)
    poly_max_points: Annotated[int, Meta(ge=3, description="maximum number of points of a predicted polygon")] = 20
    max_desc_tokens: Annotated[int, Meta(ge=1, description="a description is closed after this many tokens")] = 48
    max_desc_loops: Annotated[
        int,
        Meta(
            ge=2,
            description="a description is closed when a sequence of 1 to 4 tokens that contains a letter is repeated "
            "this many times in a row",
        ),
    ] = 4
    max_repeats: Annotated[int, Meta(ge=2, description="an answer is closed after this many copies of an object")] = 4
    repeat_iou: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="minimum IoU at which boxes with the same description count as copies; 1: identical bins",
        ),
    ] = 0.8
    suppress_repeats: Annotated[
        bool,
        Meta(
            description="drop each box that is a copy (see `repeat_iou`) of an earlier one with the same description, "
            "and close the answer after `max_suppressed` of them in a row"
        ),
    ] = False
    max_suppressed: Annotated[
        int,
        Meta(
            ge=1,
            description="with `suppress_repeats: true`, close an answer after this many suppressed boxes in a row",
        ),
    ] = 3
    continue_above: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(
            description="list further objects after the model would end the answer, as long as the probability that "
            "they exist is at least this (see the section on missed objects in docs/inference.md); null: end where "
            "the model ends"
        ),
    ] = None
    samples: Annotated[
        int,
        Meta(
            ge=1,
            description="number of answers per prompt: the most likely one and, above 1, sampled ones; their boxes are "
            "merged by description and IoU",
        ),
    ] = 1
    sample_temperature: Annotated[
        float,
        Meta(
            gt=0, description="divides the logits of a sampled answer; those of bins are divided by `temperature` too"
        ),
    ] = 1.0
    sample_seed: Annotated[int, Meta(ge=0, description="seed of the sampled answers")] = 17
    merge_iou: Annotated[
        float,
        Meta(gt=0, le=1, description="minimum IoU at which boxes of different answers are merged, with `samples` > 1"),
    ] = 0.5
    vote_weight: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="with `samples` > 1, weight of the mean score over all answers (0 for answers without the box) "
            "against the score of the best box; 0: votes do not count",
        ),
    ] = 0.5
    drop_duplicates: Annotated[
        bool,
        Meta(
            description="drop detections that duplicate a higher-scoring one: same description, IoU >= `duplicate_iou`"
        ),
    ] = False
    duplicate_iou: Annotated[
        float, Meta(gt=0, le=1, description="minimum IoU at which boxes with the same description count as duplicates")
    ] = 0.9


def check_options(options: PredictOptions, style: PromptStyle, section: str = "predict") -> None:
    """ConfigError for options that the style of the answers does not support; `section` names them in the error.

    `continue_above` needs a choice of its own between another object and the end.
    """
    if options.continue_above is not None:
        boxes = options.geometry == ("bbox_2d",)
        if not (boxes and style.coordinates == "token" and style.object_field_order == "desc_first"):
            problem = "needs boxes as coordinate tokens, and descriptions before the geometry"
            found = [*options.geometry, style.coordinates, style.object_field_order]
            raise ConfigError(located(problem, field=f"{section}.continue_above", found=found, fix="set it to null"))
    if options.restrict_labels and style.coordinates == "integer":
        problem, fix = "needs coordinate tokens; the coordinates of this model are text integers", "set it to false"
        raise ConfigError(located(problem, field=f"{section}.restrict_labels", found=True, fix=fix))


def score_options(options: PredictOptions) -> dict[str, Any]:
    """The options that determine what a score means, as JSON types; without those that another one turns off.

    Of slices, `max_blocks` is left out, because the image budget may be its default.
    """
    names = ["decode", "temperature", "local_radius", "geometry", "restrict_labels", "continue_above"]
    names += ["samples", *(("sample_temperature", "merge_iou", "vote_weight") if options.samples > 1 else ())]
    names += ["suppress_repeats", *(("repeat_iou", "max_suppressed") if options.suppress_repeats else ())]
    names += ["drop_duplicates", *(("duplicate_iou",) if options.drop_duplicates else ()), "slices"]
    given = msgspec.json.decode(msgspec.json.encode(options))
    if given["slices"]:
        del given["slices"]["max_blocks"]
    return {name: given[name] for name in names}


class CalibrateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the calibration of scores: section `calibrate` of the configuration."""

    images: Annotated[
        int,
        Meta(
            ge=0,
            description="images of the training split that are reserved to fit the calibration; changing the "
            "number retrains the model",
        ),
    ] = 0
    method: Annotated[
        Literal["none"] | CalibrationMethod,
        Meta(
            description="how scores become probabilities: `logistic` regression on all raw score terms, `isotonic` "
            "regression on the raw score; needs `images`"
        ),
    ] = "none"
