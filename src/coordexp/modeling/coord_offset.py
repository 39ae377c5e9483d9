"""Trainable offsets on the embedding rows of the coordinate tokens, stored in a PEFT adapter.

Importing this module registers the adapter type with PEFT, so that `PeftModel.from_pretrained` loads such adapters;
adapters without offsets are not affected. Without the import, PEFT stops with an error that names this module, because
the saved `init_lora_weights` is that message.
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

from coordexp.modeling.adapter import OFFSET_KEY, OFFSET_MODULE
from coordexp.modeling.adapter_options import NEEDS_PLUGIN, changes_base
from coordexp.records import COORD_BINS
from coordexp.runtime.errors import ModelError, located


class CoordOffsetAdapter(nn.Module):
    """Two tables [1000, hidden], initially zero, that are added to the rows `start`..`end` of both embedding tables.

    `embed_offset` is added to the input embedding of a coordinate token, `head_offset` to its row of the output layer:
    `logits[..., start:end+1] += h @ head_offset.T`. Without `own_head` (tied embeddings) `embed_offset` is used for
    both. The embedding tables themselves are never modified.
    """

    def __init__(self, hidden: int, start: int, end: int, own_head: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if end - start + 1 != COORD_BINS:
            raise ModelError(located("ids must span the coordinate tokens", expected=COORD_BINS, found=end - start + 1))
        self.start, self.end = start, end
        self.embed_offset = nn.Parameter(torch.zeros(COORD_BINS, hidden, dtype=dtype))
        self.head_offset = nn.Parameter(torch.zeros(COORD_BINS, hidden, dtype=dtype)) if own_head else None

    def forward(self, output: Tensor, source: Tensor, side: Literal["embed", "head"]) -> Tensor:
        """Add the offsets to the `output` of the embedding (`source`: ids [...]) or head (`source`: [..., hidden])."""
        return self._embed(output, source) if side == "embed" else self._head(output, source)

    def _embed(self, output: Tensor, ids: Tensor) -> Tensor:
        index = ids.to(output.device) - self.start
        inside = ((index >= 0) & (index < COORD_BINS)).unsqueeze(-1)
        rows = functional.embedding(index.clamp(0, COORD_BINS - 1), self.embed_offset)
        # added in float32 and rounded once, as in merging
        return torch.where(inside, (output.float() + rows.float()).to(output.dtype), output)

    def _head(self, output: Tensor, hidden: Tensor) -> Tensor:
        table = self.embed_offset if self.head_offset is None else self.head_offset
        delta = functional.linear(hidden, table.to(hidden.dtype)).to(output.dtype)
        return _AddColumns.apply(output, delta, self.start)


class _AddColumns(torch.autograd.Function):
    """Adds `delta` [..., N] to the columns from `start` on of `output` [..., V], in place.

    The gradient of `output` passes through unchanged, where autograd's own for a slice copies it several times; it is
    the largest tensor of training.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, delta: Tensor, start: int) -> Tensor:
        """`output`, modified."""
        ctx.columns = slice(start, start + delta.shape[-1])
        output[..., ctx.columns].add_(delta)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """Gradients of `output`, `delta` and `start`."""
        return gradient, gradient[..., ctx.columns], None


@dataclass
class CoordOffsetLoraConfig(LoraConfig):
    """LoRA or DoRA with coordinate offsets; `coord_offset` has the keys start, end, tie_head and dtype."""

    coord_offset: dict | None = field(default=None, metadata={"help": "ids, tying and dtype of the coordinate offsets"})

    def __post_init__(self) -> None:
        """List the offset module in `modules_to_save`."""
        if self.init_lora_weights == NEEDS_PLUGIN:
            self.init_lora_weights = True  # the weights come from the file
        if changes_base(self.init_lora_weights):
            problem = "coordinate offsets need an initialisation that does not change the base weights"
            raise ModelError(located(problem, field="init_weights", found=self.init_lora_weights, fix="set it to true"))
        self.modules_to_save = [*(m for m in self.modules_to_save or () if m != OFFSET_MODULE), OFFSET_MODULE]
        super().__post_init__()

    def to_dict(self) -> dict:
        """The saved configuration, whose `init_lora_weights` stops PEFT if this module is not imported."""
        return super().to_dict() | {"init_lora_weights": NEEDS_PLUGIN}


@dataclass
class _ConfigByContent(LoraConfig):
    """Constructs the plain LoRA configuration, or the one with offsets if the saved configuration has them."""

    coord_offset: dict | None = None

    def __new__(cls, *args: Any, coord_offset: dict | None = None, **kwargs: Any) -> LoraConfig:  # type: ignore[misc]
        if coord_offset is None:
            return LoraConfig(*args, **kwargs)
        return CoordOffsetLoraConfig(*args, coord_offset=coord_offset, **kwargs)


class CoordOffsetLoraModel(LoraModel):
    """PEFT's LoRA model, with the offset module attached if the adapter's configuration has offsets."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Attach the offset module, then inject the adapter as PEFT does."""
        settings = getattr(self.peft_config[adapter_name], OFFSET_KEY, None)
        if settings:
            attach(model, **settings)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if settings:
            _refuse_adapted_embeddings(model)


def lora_config(ids: dict | None, *, tie_head: bool = True, dtype: str = "auto", **lora: Any) -> LoraConfig:
    """A PEFT configuration for LoRA or DoRA, with coordinate offsets if `ids` ({start, end}) is given.

    `lora` are fields of `peft.LoraConfig`; `tie_head` matters only for a base with tied embeddings; `dtype` is the name
    of a torch dtype, `auto` for float32.
    """
    if ids is None:
        return LoraConfig(**lora)
    settings = {"start": ids["start"], "end": ids["end"], "tie_head": tie_head, "dtype": dtype}
    return CoordOffsetLoraConfig(coord_offset=settings, **lora)


def attach(model: nn.Module, start: int, end: int, tie_head: bool = True, dtype: str = "auto") -> None:
    """Attach a zero offset module and its two forward hooks to a model; a second call only checks the ids."""
    present = getattr(model, OFFSET_MODULE, None)
    if present is not None:
        if (present.start, present.end) != (start, end):
            found = (present.start, present.end)
            raise ModelError(located("offsets for other ids are already attached", expected=(start, end), found=found))
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
    owner = weakref.ref(model)  # PEFT deep-copies modules with hooks; the model must not be copied along

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
            problem = "coordinate offsets and training of the full table are mutually exclusive"
            raise ModelError(located(problem, field=name, fix=fix))


PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] = _ConfigByContent
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = CoordOffsetLoraModel
