"""Trainable offsets on the rows of the coordinate tokens, carried inside a PEFT adapter.

Importing this module teaches PEFT to load such adapters (`PeftModel.from_pretrained` as usual) through PEFT's own
registry of methods; adapters without offsets are untouched by it. Without the import PEFT stops with an error that
says what to import, because the saved `init_lora_weights` is that sentence.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, LoraModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional

from coordexp.modeling.adapter import BASE_CHANGING, NEEDS_PLUGIN, OFFSET_KEY, OFFSET_MODULE
from coordexp.records import COORD_BINS
from coordexp.runtime.errors import ModelError, located


class CoordOffsetAdapter(nn.Module):
    """Two float tables [1000, hidden], zero at the start: what is added to the rows `start`..`end` of both embeddings.

    `embed_offset` is added to the input embedding of a coordinate token; `head_offset` to its output row, that is
    `logits[..., start:end+1] += h @ head_offset.T`. Without `own_head` (tied embeddings) `embed_offset` serves both.
    The embedding matrices are never rewritten.
    """

    def __init__(self, hidden: int, start: int, end: int, own_head: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if end - start + 1 != COORD_BINS:
            raise ModelError(located("ids must span the coordinate tokens", expected=COORD_BINS, found=end - start + 1))
        self.start, self.end = start, end
        self.embed_offset = nn.Parameter(torch.zeros(COORD_BINS, hidden, dtype=dtype))
        self.head_offset = nn.Parameter(torch.zeros(COORD_BINS, hidden, dtype=dtype)) if own_head else None

    def forward(self, output: Tensor, source: Tensor, side: Literal["embed", "head"]) -> Tensor:
        """`output` of the embedding (`source`: ids [...]) or of the head (`source`: [..., hidden]), with offsets."""
        return self._embed(output, source) if side == "embed" else self._head(output, source)

    def _embed(self, output: Tensor, ids: Tensor) -> Tensor:
        index = ids.to(output.device) - self.start
        inside = ((index >= 0) & (index < COORD_BINS)).unsqueeze(-1)
        rows = functional.embedding(index.clamp(0, COORD_BINS - 1), self.embed_offset)
        # added in float32 and rounded once, as merging does
        return torch.where(inside, (output.float() + rows.float()).to(output.dtype), output)

    def _head(self, output: Tensor, hidden: Tensor) -> Tensor:
        table = self.embed_offset if self.head_offset is None else self.head_offset
        delta = functional.linear(hidden, table.to(hidden.dtype))
        output[..., self.start : self.end + 1] += delta.to(output.dtype)
        return output


@dataclass
class CoordOffsetLoraConfig(LoraConfig):
    """LoRA or DoRA with coordinate offsets: `coord_offset` is {start, end, tie_head, dtype}."""

    coord_offset: dict | None = field(default=None, metadata={"help": "ids and form of the coordinate offsets"})

    def __post_init__(self) -> None:
        """Lists the offset module in `modules_to_save`."""
        if self.init_lora_weights == NEEDS_PLUGIN:
            self.init_lora_weights = True  # the weights come from the file
        if str(self.init_lora_weights).lower().startswith(BASE_CHANGING):
            problem = "coordinate offsets need an initialisation that leaves the base weights alone"
            raise ModelError(located(problem, field="init_weights", found=self.init_lora_weights, fix="set it to true"))
        self.modules_to_save = [*(m for m in self.modules_to_save or () if m != OFFSET_MODULE), OFFSET_MODULE]
        super().__post_init__()

    def to_dict(self) -> dict:
        """The form that is saved; PEFT without this module stops at `init_lora_weights`."""
        return super().to_dict() | {"init_lora_weights": NEEDS_PLUGIN}


@dataclass
class _ConfigByContent(LoraConfig):
    """What the registry calls for LORA: the plain class unless the saved configuration has offsets."""

    coord_offset: dict | None = None

    def __new__(cls, *args: Any, coord_offset: dict | None = None, **kwargs: Any) -> LoraConfig:  # type: ignore[misc]
        if coord_offset is None:
            return LoraConfig(*args, **kwargs)
        return CoordOffsetLoraConfig(*args, coord_offset=coord_offset, **kwargs)


class CoordOffsetLoraModel(LoraModel):
    """PEFT's LoRA model that first attaches the offset module when the adapter's configuration asks for it."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in PEFT."""
        settings = getattr(self.peft_config[adapter_name], OFFSET_KEY, None)
        if settings:
            attach(model, **settings)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if settings:
            _refuse_adapted_embeddings(model)


def lora_config(ids: dict | None, *, tie_head: bool = True, dtype: str = "auto", **lora: Any) -> LoraConfig:
    """A PEFT configuration: LoRA or DoRA (`lora`: fields of `peft.LoraConfig`), with offsets when `ids` is given.

    `ids` is {start, end}; `tie_head` only matters on a base with tied embeddings; `dtype` auto means float32.
    """
    if ids is None:
        return LoraConfig(**lora)
    settings = {"start": ids["start"], "end": ids["end"], "tie_head": tie_head, "dtype": dtype}
    return CoordOffsetLoraConfig(coord_offset=settings, **lora)


def attach(model: nn.Module, start: int, end: int, tie_head: bool = True, dtype: str = "auto") -> None:
    """Put a zero offset module and its two hooks on a Qwen3-VL model; done once, a second call checks the ids."""
    present = getattr(model, OFFSET_MODULE, None)
    if present is not None:
        if (present.start, present.end) != (start, end):
            found = (present.start, present.end)
            raise ModelError(located("offsets for other ids are attached", expected=(start, end), found=found))
        return
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows, hidden = embed.weight.shape
    if end >= rows:
        fix = "load the expanded checkpoint"
        raise ModelError(
            located("coordinate ids lie outside the embedding table", expected=f"< {rows}", found=end, fix=fix)
        )
    tied = head.weight is embed.weight
    table_dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    module = CoordOffsetAdapter(hidden, start, end, own_head=not (tied and tie_head), dtype=table_dtype)
    setattr(model, OFFSET_MODULE, module.to(embed.weight.device))
    owner = weakref.ref(model)  # PEFT copies hooked modules; the model must not be copied with them

    def offset_embedding(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return getattr(owner(), OFFSET_MODULE)(output, args[0], "embed")

    def offset_logits(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return getattr(owner(), OFFSET_MODULE)(output, args[0], "head")

    embed.register_forward_hook(offset_embedding)
    head.register_forward_hook(offset_logits)


def _refuse_adapted_embeddings(model: nn.Module) -> None:
    """ModelError if an adapter or `modules_to_save` also trains the embedding table or the output layer."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            name = next(name for name, found in model.named_modules() if found is module)
            fix = f"remove {name} from target_modules and modules_to_save, or disable coord_offset"
            problem = "coordinate offsets and training of the full table exclude each other"
            raise ModelError(located(problem, field=name, fix=fix))


PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] = _ConfigByContent
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = CoordOffsetLoraModel
