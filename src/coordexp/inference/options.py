"""Knobs of prediction: section `predict` of the configuration, and finer ones with sound defaults."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Protocol = Literal["open", "all_categories", "image_categories"]
Decode = Literal["argmax", "expectation", "local"]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class PredictOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make one from the configuration with `msgspec.convert(config["predict"], PredictOptions)`.

    images: which records the workflow hands over; not read here.
    protocol: `open` names nothing, `all_categories` asks for `chunk` categories at a time, `image_categories`
        names the categories that the image's own objects have.
    decode: how a slot's distribution becomes a coordinate: its mode, its mean, or the mean within `local_radius`
        bins of the mode. The token fed back is always the mode.
    batch_size, max_new_tokens: images decoded together; tokens of one answer, forced ones included.
    shards: jobs that the images are spread over.
    temperature: divides the logits of the coordinate slots, as in training.
    local_radius: bins on either side of the mode, for `local` and for the mass in a slot's score.
    restrict_labels: descriptions are exactly the given categories.
    geometry: kinds of geometry an answer may hold.
    poly_max_points: most points of a polygon.
    max_desc_tokens, max_desc_loops: a description is closed when it is longer, or when up to 4 tokens have come
        this often in a row.
    max_repeats: the answer is closed when one object (same tokens) has come this often.
    drop_duplicates: leave out detections that repeat a better one (same description, IoU >= `duplicate_iou`).
    """

    images: str = "val"
    protocol: Protocol = "open"
    decode: Decode = "local"
    batch_size: Positive = 16
    max_new_tokens: Positive = 4096
    shards: Positive = 1
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    local_radius: Annotated[int, msgspec.Meta(ge=0)] = 16
    chunk: Positive = 80
    restrict_labels: bool = False
    geometry: tuple[Literal["bbox_2d", "poly"], ...] = ("bbox_2d",)
    poly_max_points: Annotated[int, msgspec.Meta(ge=3)] = 20
    max_desc_tokens: Positive = 48
    max_desc_loops: Annotated[int, msgspec.Meta(ge=2)] = 4
    max_repeats: Positive = 4
    drop_duplicates: bool = False
    duplicate_iou: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
