"""LVIS JSON: COCO JSON with federated annotations (Gupta et al., 2019)."""

from __future__ import annotations

from coordexp.datasets.formats.base import FORMATS
from coordexp.datasets.formats.coco import CocoFormat


@FORMATS.register("lvis")
class LvisFormat(CocoFormat):
    """COCO JSON whose images list verified absent and not exhaustively annotated categories."""

    federated = True
