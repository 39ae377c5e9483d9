"""A small real vision-language model with random weights, as an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from coordexp.modeling.families import DEFAULT_FAMILY, TinyOptions, family_named
from coordexp.runtime import io
from coordexp.runtime.errors import ModelError, located


def build(
    out_dir: str | Path, seed: int, *, family: str = DEFAULT_FAMILY, tokenizer: Tokenizer | None = None, **options: Any
) -> Path:
    """Write a complete checkpoint folder and return it; the same seed and options give the same bytes.

    `options` are the fields of `TinyOptions`; `tokenizer` replaces the compact one (the tests pass one with the
    published vocabulary). ModelError for an unknown family and for unknown or impossible options.
    """
    out_dir = Path(out_dir)
    try:
        checked = msgspec.convert(options, TinyOptions)
    except msgspec.ValidationError as error:
        fix = f"the options are {', '.join(TinyOptions.__struct_fields__)}"
        raise ModelError(located(f"invalid option for the tiny model: {error}", fix=fix)) from error
    model = family_named(family)
    with io.atomic_dir(out_dir) as folder:
        model.write_tiny(folder, checked, tokenizer or model.tiny_tokenizer(checked), seed)
    return out_dir
