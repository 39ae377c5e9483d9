"""Model families: what depends on the architecture of a checkpoint, one module per family.

To add a family, write a module with a registered `ModelFamily` and import it below, or register one in a plug-in file
of your own (`coordexp.runtime.plugins`).
"""

from coordexp.modeling.families.family import (
    FAMILIES,
    EmbeddingTensors,
    ExpertNames,
    ModelFamily,
    ModuleNames,
    RecurrentState,
    SpecialTokens,
    SwiftNames,
    TinyOptions,
    family_named,
    family_of,
)

DEFAULT_FAMILY = "qwen3_vl"  # of a tiny model

__all__ = [
    "DEFAULT_FAMILY",
    "FAMILIES",
    "EmbeddingTensors",
    "ExpertNames",
    "ModelFamily",
    "ModuleNames",
    "RecurrentState",
    "SpecialTokens",
    "SwiftNames",
    "TinyOptions",
    "family_named",
    "family_of",
    "qwen3_5",
    "qwen3_vl",
]

# Registers the families; last, so that their modules can import the names above from this package, like a plug-in.
from coordexp.modeling.families import qwen3_5, qwen3_vl  # noqa: E402
