"""CoordExp: teach a vision-language model to detect, with coordinate tokens and plain SFT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordexp.inference.detector import Detector as Detector
    from coordexp.inference.image_detections import Detections as Detections
    from coordexp.inference.image_detections import to_coco as to_coco

__version__ = "0.1.0"
__all__ = ("Detections", "Detector", "__version__", "to_coco")

_MODULES = {"Detector": "inference.detector", "Detections": "inference.image_detections"}
_MODULES |= {"to_coco": "inference.image_detections"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package must not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
