"""Validated reading of the JSON files of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from coordexp.runtime import io
from coordexp.runtime.errors import DataError, ModelError, located

MAX_LAYERS, MAX_SIZE = 1024, 1 << 24
_LAYERS = re.compile(r"(num_.*layers|depth)")
_SIZE = re.compile(r".*(_size|_heads|_dim|_embeddings)")

Positive = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]


class TextConfig(msgspec.Struct):
    """The parts of `text_config` that are used."""

    tie_word_embeddings: bool | UnsetType | None = UNSET
    vocab_size: Positive | UnsetType | None = UNSET


class VisionConfig(msgspec.Struct):
    """The parts of `vision_config` that are used."""

    patch_size: Positive | UnsetType = UNSET
    spatial_merge_size: Positive | UnsetType = UNSET


class ModelConfig(msgspec.Struct):
    """The parts of config.json that are used."""

    model_type: str | UnsetType | None = UNSET
    text_config: TextConfig | UnsetType = UNSET
    vision_config: VisionConfig | UnsetType = UNSET
    tie_word_embeddings: bool | UnsetType | None = UNSET
    vocab_size: Positive | UnsetType | None = UNSET


Channels = Annotated[list[float], Meta(min_length=3, max_length=3)]
Scales = Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=3, max_length=3)]


class ImageProcessor(msgspec.Struct):
    """The parts of preprocessor_config.json that its class uses without a check."""

    image_mean: Channels | UnsetType | None = UNSET
    image_std: Scales | UnsetType | None = UNSET
    patch_size: Positive | UnsetType = UNSET
    temporal_patch_size: Positive | UnsetType = UNSET
    merge_size: Positive | UnsetType = UNSET
    rescale_factor: float | UnsetType = UNSET
    size: dict[str, int] | UnsetType | None = UNSET
    do_resize: bool | UnsetType = UNSET
    do_rescale: bool | UnsetType = UNSET
    do_normalize: bool | UnsetType = UNSET
    do_convert_rgb: bool | UnsetType = UNSET


class TokenizerConfig(msgspec.Struct):
    """The parts of tokenizer_config.json that its class uses without a check."""

    model_max_length: float | UnsetType | None = UNSET
    padding_side: str | UnsetType | None = UNSET
    truncation_side: str | UnsetType | None = UNSET
    added_tokens_decoder: dict[str, dict] | UnsetType = UNSET


class AddedToken(msgspec.Struct):
    """An added token of tokenizer.json."""

    id: TokenId
    content: str


class TokenizerModel(msgspec.Struct):
    """The vocabulary of tokenizer.json, of a byte-level BPE."""

    vocab: dict[str, TokenId]
    merges: list[str | tuple[str, str]]


class TokenizerFile(msgspec.Struct):
    """The parts of tokenizer.json that are used."""

    model: TokenizerModel
    added_tokens: list[AddedToken]


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; ModelError if the file holds anything else."""
    try:
        content = io.read_json(path)
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(located("expected a JSON object", file=path, found=type(content).__name__))
    return content


def check_config(path: Path) -> None:
    """ModelError unless config.json has the types that its readers expect and sizes that a model may have.

    The same for the configurations of the tokenizer and of the image processor beside it, if there are any.
    """
    for name, kind in (("preprocessor_config.json", ImageProcessor), ("tokenizer_config.json", TokenizerConfig)):
        other = path.with_name(name)
        if other.is_file():
            _convert(read_object(other), kind, other)
    content = read_object(path)
    _convert(content, ModelConfig, path)
    for field, value in _leaves(content):
        name = field.rpartition(".")[2]
        limit = MAX_LAYERS if _LAYERS.fullmatch(name) else MAX_SIZE if _SIZE.fullmatch(name) else None
        if limit and isinstance(value, int | float) and not 0 <= value <= limit:
            raise ModelError(located("implausible size", file=path, field=field, expected=f"0..{limit}", found=value))
        if name.strip("_") == "attn_implementation" and "/" in str(value):
            fix = "remove the key"
            raise ModelError(located("the kernel of a model hub is never run", file=path, field=field, fix=fix))


def read_tokenizer(path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json with a byte-level BPE; ModelError if it is malformed."""
    content = read_object(path)
    _convert(content, TokenizerFile, path)
    if not content["model"]["vocab"]:
        raise ModelError(located("the vocabulary is empty", file=path, field="model.vocab"))
    return content


def _convert(content: dict, kind: type, path: Path) -> None:
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ModelError(located(f"malformed: {error}", file=path, fix="fetch the checkpoint again")) from error


def _leaves(content: Any) -> list[tuple[str, Any]]:
    """(dotted key, value) of every value that is neither an object nor a list."""
    found, pending = [], [("", content)]
    while pending:
        field, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{field}.{key}" if field else str(key), item) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend((field, item) for item in value)
        else:
            found.append((field, value))
    return found
