"""A training job as written to disk for the training processes."""

from __future__ import annotations

from typing import Any

import msgspec


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training run; all paths are absolute.

    arguments: of ms-swift. custom: the recipe's `custom` section. checkpoints: folder of the checkpoints.
    """

    arguments: dict[str, Any]
    custom: dict[str, Any]
    checkpoints: str
