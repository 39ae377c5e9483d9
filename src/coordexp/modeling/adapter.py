"""The changes that a PEFT adapter makes to a base checkpoint, per tensor, read from the file headers only."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec

from coordexp.modeling import safetensors_io as shards
from coordexp.records import COORD_BINS
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError, located

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OFFSET_MODULE = "coord_offset_adapter"
OFFSET_KEY = "coord_offset"
NEEDS_PLUGIN = "this adapter contains coord_offset_adapter: `import coordexp.modeling.coord_offset` before loading it"

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?")
BASE_CHANGING = ("pissa", "olora", "corda", "loftq")  # initialisations that also change the base weights
_UNSUPPORTED = ("lora_bias", "trainable_token_indices", "target_parameters", "arrow_config", "layer_replication")


class Lora(msgspec.Struct, frozen=True):
    """Low-rank update of one weight [out, in]: `scale * B @ A`, rescaled row by row to norm `magnitude` for DoRA.

    For an embedding [rows, hidden] `a` is [r, rows], `b` is [hidden, r] and the update is `scale * (B @ A).T`.
    """

    a: shards.TensorSpec
    b: shards.TensorSpec
    scale: float
    magnitude: shards.TensorSpec | None
    embedding: bool


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
    config: dict
    file: shards.ShardFile
    lora: dict[str, Lora]
    replaced: dict[str, shards.TensorSpec]
    offsets: Offsets | None


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder; ModelError for options or tensor names that cannot be merged exactly."""
    folder = Path(folder)
    config = io.read_json(folder / CONFIG_NAME)
    _check_config(folder, config)
    file = shards.read_header(folder / WEIGHTS_NAME)
    lora_parts: dict[str, dict[str, shards.TensorSpec]] = {}
    replaced: dict[str, shards.TensorSpec] = {}
    offset_parts: dict[str, shards.TensorSpec] = {}
    saved = tuple(config.get("modules_to_save") or ())
    for key, spec in file.tensors.items():
        if not key.startswith(_PREFIX):
            raise ModelError(
                located("unexpected tensor name in an adapter", file=file.path, field=key, expected=f"{_PREFIX}...")
            )
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        match = _LORA.fullmatch(name)
        if match:
            lora_parts.setdefault(match["module"], {})[match["part"]] = spec
        elif name.startswith(f"{OFFSET_MODULE}."):
            offset_parts[name.removeprefix(f"{OFFSET_MODULE}.")] = spec
        else:  # modules_to_save, trained biases, saved embedding layers: complete tensors under the names of the base
            replaced[name] = spec
    lora = {f"{module}.weight": _lora(file, module, parts, config) for module, parts in lora_parts.items()}
    return Adapter(folder, config, file, lora, replaced, _offsets(file, config, offset_parts, OFFSET_MODULE in saved))


def _check_config(folder: Path, config: dict) -> None:
    path = folder / CONFIG_NAME
    if config.get("peft_type") != "LORA":
        found = config.get("peft_type")
        raise ModelError(
            located("not a LoRA or DoRA adapter", file=path, field="peft_type", expected="LORA", found=found)
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            raise ModelError(located("merging does not support this option", file=path, field=key, found=config[key]))
    start = str(config.get("init_lora_weights") or "").lower()
    if start.startswith(BASE_CHANGING):
        fix = "convert the adapter to a plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        problem = "this initialisation also changed the base weights"
        raise ModelError(located(problem, file=path, field="init_lora_weights", found=start, fix=fix))


def _lora(file: shards.ShardFile, module: str, parts: dict[str, shards.TensorSpec], config: dict) -> Lora:
    embedding = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{side}" if embedding else side) for side in "AB")
    if a is None or b is None:
        raise ModelError(located("a LoRA pair is incomplete", file=file.path, field=module))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        found = {"A": a.shape, "B": b.shape}
        raise ModelError(
            located("only linear and embedding layers can be merged", file=file.path, field=module, found=found)
        )
    rank = a.shape[0]
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if config.get("fan_in_fan_out") and not embedding:
        raise ModelError(located("transposed layers cannot be merged", file=file.path, field="fan_in_fan_out"))
    magnitude = parts.get("magnitude_vector")
    if magnitude is None and config.get("use_dora"):
        raise ModelError(located("DoRA adapter without a magnitude vector", file=file.path, field=module))
    return Lora(a=a, b=b, scale=scale, magnitude=magnitude, embedding=embedding)


def _pattern(patterns: dict | None, module: str, default: float) -> float:
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _offsets(file: shards.ShardFile, config: dict, parts: dict[str, shards.TensorSpec], listed: bool) -> Offsets | None:
    if not parts and not listed:
        return None
    settings = config.get(OFFSET_KEY) or {}
    embed, head = parts.get("embed_offset"), parts.get("head_offset")
    if embed is None or "start" not in settings:
        problem = "the adapter lists coordinate offsets but does not contain them"
        raise ModelError(located(problem, file=file.path, field=OFFSET_MODULE, found=sorted(parts)))
    for spec in filter(None, (embed, head)):
        if spec.shape[0] != COORD_BINS:
            raise ModelError(located("wrong number of rows", file=file.path, field=spec.name, found=spec.shape))
    return Offsets(settings["start"], settings["end"], embed, head, bool(settings.get("tie_head", head is None)))
