"""Published figures, in percent, with the source, date and protocol of each.

`protocol` is a name of `table_protocols.TABLE_PROTOCOLS`; it also names the columns. `note` says what the source leaves
open; such a figure is listed, but compared with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFigure:
    """The row of one model in one table; `date` is the month of the first version of the source."""

    model: str
    protocol: str
    values: dict[str, float]
    source: str
    date: str
    note: str = ""


_LOCATE_ANYTHING = ("arXiv:2605.27365 (LocateAnything)", "2026-05")
_F1 = ("F1@0.5", "F1@0.95", "F1@mean")
_F1_TABLE = {  # COCO, LVIS, Dense200, VisDrone
    "LocateAnything-3B": ((70.1, 19.3, 54.7), (62.3, 31.1, 50.7), (74.0, 18.5, 58.7), (63.0, 3.2, 39.9)),
    "Rex-Omni-3B": ((72.0, 15.9, 52.9), (64.3, 20.7, 46.9), (78.4, 10.3, 58.3), (61.6, 1.5, 35.8)),
    "Qwen3-VL-4B": ((63.0, 14.2, 46.1), (59.8, 20.0, 43.5), (17.5, 2.4, 12.5), (42.3, 1.4, 26.0)),
    "Grounding DINO-T": ((69.8, 23.0, 56.6), (47.7, 22.7, 38.8), (36.9, 19.7, 33.1), (55.2, 3.9, 38.5)),
}
_NO_PROTOCOL = "the source does not state the prompt"

PUBLISHED_FIGURES = [
    *(
        PublishedFigure(model, protocol, dict(zip(_F1, values, strict=True)), *_LOCATE_ANYTHING)
        for model, rows in _F1_TABLE.items()
        for protocol, values in zip(("rex_omni", "rex_omni_lvis", "dense200", "visdrone"), rows, strict=True)
    ),
    PublishedFigure("UFO", "coco_ap", {"AP": 51.9}, "arXiv:2503.01342", "2025-03"),
    PublishedFigure("Moondream2", "coco_ap", {"AP": 51.2}, "release notes of 2025-03-27", "2025-03", _NO_PROTOCOL),
    PublishedFigure("Pix2Seq-L", "coco_ap", {"AP": 50.0}, "arXiv:2109.10852", "2021-09"),
    PublishedFigure("ChatRex", "coco_ap", {"AP": 48.2}, "arXiv:2411.18363", "2024-11"),
    PublishedFigure("VLM-FO1-3B", "coco_ap", {"AP": 44.4}, "arXiv:2509.25916", "2025-09"),
    PublishedFigure("Perception-R1-3B", "coco_ap", {"AP": 31.9}, "arXiv:2504.07954", "2025-04"),
    PublishedFigure("LLMDet-L", "lvis_minival", {"AP": 52.4}, "arXiv:2501.18954", "2025-01"),
]
