"""Options of the evaluation: the `evaluate` section of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.datasets.source import OnBad
from coordexp.runtime.errors import ConfigError, located

ProtocolName = Literal["coco", "lvis"]
PHRASES = "phrases"  # `predict.protocol` whose answers are scored phrase by phrase
PROTOCOL_TITLES: dict[ProtocolName, str] = {"coco": "COCO", "lvis": "LVIS"}


class MaxDets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Number of detections that are scored, best scores first."""

    lvis: Annotated[int, Meta(ge=1, description="detections per image, over all categories")] = 300
    coco: Annotated[int, Meta(ge=1, description="detections per image and category")] = 100


class EvaluateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How predictions are scored."""

    protocols: Annotated[
        tuple[ProtocolName, ...],
        Meta(description="AP protocols to compute; `lvis` is skipped if the annotations have no federated lists"),
    ] = ("lvis", "coco")
    max_dets: Annotated[MaxDets, Meta(description="detections scored per image, by protocol")] = MaxDets()
    subset: Annotated[
        bool, Meta(description="score only the predicted images; otherwise a missing image is an error")
    ] = False
    on_bad: Annotated[
        OnBad, Meta(description="invalid annotations: `error` stops, `skip` leaves them out and counts them")
    ] = "error"
    bootstrap: Annotated[int, Meta(ge=0, description="bootstrap replicates for confidence intervals; 0: none")] = 200
    seed: Annotated[int, Meta(ge=0, description="random seed of the bootstrap")] = 0
    examples: Annotated[int, Meta(ge=0, description="length of each list under `examples` in eval.json")] = 50


def options_from(config: dict[str, Any]) -> EvaluateOptions:
    """Options from a plain mapping; ConfigError naming the invalid key."""
    try:
        return msgspec.convert(config, EvaluateOptions)
    except msgspec.ValidationError as error:
        fix = "see the evaluate section of config/config.yaml"
        raise ConfigError(located(f"evaluate: {error}", fix=fix)) from error
