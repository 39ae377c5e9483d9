"""The changes that a PEFT adapter makes to a base checkpoint, per tensor, read from the file headers only."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec

from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.adapter_options import LoraSettings, OffsetSettings, lora_settings
from coordexp.modeling.checkpoint_config import read_object
from coordexp.records import COORD_BINS
from coordexp.runtime.errors import ModelError, located

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OFFSET_MODULE = "coord_offset_adapter"
OFFSET_KEY = "coord_offset"

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?")


class Lora(msgspec.Struct, frozen=True):
    """Low-rank update of one weight [out, in]: `scale * B @ A`, rescaled row by row to norm `magnitude` for DoRA.

    For an embedding [rows, hidden] `a` is [r, rows], `b` is [hidden, r] and the update is `scale * (B @ A).T`.
    """

    a: shards.TensorSpec
    b: shards.TensorSpec
    scale: float
    magnitude: shards.TensorSpec | None
    embedding: bool


class ExpertLora(msgspec.Struct, frozen=True):
    """Low-rank updates of one stacked weight of the experts in `module`: `scale * B_e @ A_e` for expert e of E.

    `a` is [E * r, in], the rows of an expert together; `b` is [out, r * E], its columns E apart. PEFT does not save
    which weight it is: that follows from the sizes.
    """

    module: str
    a: shards.TensorSpec
    b: shards.TensorSpec


class Offsets(msgspec.Struct, frozen=True):
    """Coordinate offsets [1000, hidden] for ids `start`..`end` (inclusive).

    Without `head`, the offsets `embed` apply to the input embedding and to the output layer.
    """

    start: int
    end: int
    embed: shards.TensorSpec
    head: shards.TensorSpec | None
    tie_head: bool


class Adapter(msgspec.Struct, frozen=True):
    """A PEFT adapter; the keys of `lora` and `replaced` are the names of the base tensors that they change."""

    folder: Path
    settings: LoraSettings
    file: shards.ShardFile
    lora: dict[str, Lora]
    replaced: dict[str, shards.TensorSpec]
    offsets: Offsets | None
    experts: tuple[ExpertLora, ...] = ()


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder; ModelError for options or tensor names that cannot be merged exactly."""
    folder = Path(folder)
    settings = lora_settings(read_object(folder / CONFIG_NAME), folder / CONFIG_NAME)
    file = shards.read_header(folder / WEIGHTS_NAME)
    lora_parts: dict[str, dict[str, shards.TensorSpec]] = {}
    replaced: dict[str, shards.TensorSpec] = {}
    offset_parts: dict[str, shards.TensorSpec] = {}
    expert_parts: dict[str, dict[str, shards.TensorSpec]] = {}
    expert_modules = tuple(f".{module}" for module in target_modules(settings, folder / CONFIG_NAME))
    for key, spec in file.tensors.items():
        if not key.startswith(_PREFIX):
            raise ModelError(
                located("unexpected tensor name in an adapter", file=file.path, field=key, expected=f"{_PREFIX}...")
            )
        saved = key.removeprefix(_PREFIX)
        name = saved.replace(".base_layer.", ".")
        match = _LORA.fullmatch(name)
        if match and match["module"].endswith(expert_modules):
            module = saved.rpartition(".lora_")[0]  # PEFT nests the adapters of several weights of one module
            parts, part = expert_parts.setdefault(module, {}), match["part"]
        elif match:
            parts, part = lora_parts.setdefault(match["module"], {}), match["part"]
        elif name.startswith(f"{OFFSET_MODULE}."):
            parts, part = offset_parts, name.removeprefix(f"{OFFSET_MODULE}.")
        else:  # modules_to_save, trained biases, saved embedding layers: complete tensors under the names of the base
            parts, part = replaced, name
        if part in parts:
            raise ModelError(located("the adapter contains two tensors for one weight", file=file.path, field=key))
        parts[part] = spec
    lora = {f"{module}.weight": _lora(file, module, parts, settings) for module, parts in lora_parts.items()}
    experts = tuple(_expert_lora(file, module, parts) for module, parts in expert_parts.items())
    return Adapter(folder, settings, file, lora, replaced, _offsets(file, settings, offset_parts), experts)


def _lora(file: shards.ShardFile, module: str, parts: dict[str, shards.TensorSpec], settings: LoraSettings) -> Lora:
    embedding = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{side}" if embedding else side) for side in "AB")
    if a is None or b is None:
        raise ModelError(located("a LoRA pair is incomplete", file=file.path, field=module))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        found = {"A": a.shape, "B": b.shape}
        raise ModelError(
            located("only linear and embedding layers can be merged", file=file.path, field=module, found=found)
        )
    scale = lora_scale(settings, module, a.shape[0])
    if settings.fan_in_fan_out and not embedding:
        raise ModelError(located("transposed layers cannot be merged", file=file.path, field="fan_in_fan_out"))
    magnitude = parts.get("magnitude_vector")
    if magnitude is None and settings.use_dora:
        raise ModelError(located("DoRA adapter without a magnitude vector", file=file.path, field=module))
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        facts = {"expected": b.shape[:1], "found": magnitude.shape}
        raise ModelError(located("wrong shape", file=file.path, field=magnitude.name, **facts))
    return Lora(a=a, b=b, scale=scale, magnitude=magnitude, embedding=embedding)


def target_modules(settings: LoraSettings, file: Path) -> set[str]:
    """The modules whose parameters are adapted by `target_parameters`; ModelError for a name without its module."""
    targets = settings.target_parameters or ()
    bare = [target for target in targets if "." not in target]
    if bare:
        problem = "the name of the module that contains the parameter is missing"
        raise ModelError(
            located(problem, file=file, field="target_parameters", found=bare, expected="module.parameter")
        )
    return {target.rpartition(".")[0] for target in targets}


def lora_scale(settings: LoraSettings, module: str, rank: int) -> float:
    """The factor of the update B @ A with this rank."""
    alpha = _pattern(settings.alpha_pattern, module, settings.lora_alpha)
    return alpha / (math.sqrt(rank) if settings.use_rslora else rank)


def _expert_lora(file: shards.ShardFile, module: str, parts: dict[str, shards.TensorSpec]) -> ExpertLora:
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or len(parts) != 2 or len(a.shape) != 2 or a.shape[0] != b.shape[-1]:
        problem = "not a plain LoRA pair of experts"
        found = {part: list(spec.shape) for part, spec in parts.items()}
        raise ModelError(located(problem, file=file.path, field=module, found=found))
    return ExpertLora(f"{module}.".replace(".base_layer.", ".")[:-1], a, b)


def _pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _offsets(file: shards.ShardFile, settings: LoraSettings, parts: dict[str, shards.TensorSpec]) -> Offsets | None:
    if not parts and OFFSET_MODULE not in (settings.modules_to_save or ()):
        return None
    given = settings.coord_offset or OffsetSettings()
    embed, head = parts.get("embed_offset"), parts.get("head_offset")
    if embed is None or given.start is None or given.end is None:
        problem = "the adapter lists coordinate offsets but does not contain them"
        raise ModelError(located(problem, file=file.path, field=OFFSET_MODULE, found=sorted(parts)))
    for spec in filter(None, (embed, head)):
        if len(spec.shape) != 2 or spec.shape[0] != COORD_BINS:
            raise ModelError(located("wrong number of rows", file=file.path, field=spec.name, found=spec.shape))
    tie_head = head is None if given.tie_head is None else given.tie_head
    return Offsets(given.start, given.end, embed, head, tie_head)
