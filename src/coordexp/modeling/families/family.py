"""The interface of a model family, and the look-up of the family of a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import msgspec
from msgspec import Meta

from coordexp.modeling.checkpoint_config import read_object
from coordexp.runtime.errors import ModelError, located, nearest
from coordexp.runtime.registry import Registry

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn

FAMILIES: Registry[type[ModelFamily]] = Registry("model family")


class SpecialTokens(msgspec.Struct, frozen=True):
    """Texts of the added tokens that CoordExp refers to.

    The encoded prompt has `image_pad` (`video_pad`) once per tile of an image (video); `end_of_turn` ends an answer.
    """

    image_pad: str
    video_pad: str
    end_of_turn: str


class ModuleNames(msgspec.Struct, frozen=True):
    """Names of modules within the loaded model, which are also the prefixes of tensor names in a checkpoint."""

    embedding: str
    head: str
    language_model: str
    vision_tower: str


class EmbeddingTensors(msgspec.Struct, frozen=True):
    """Names of the tensors [vocabulary, hidden] of the input embedding and the output layer in a checkpoint.

    tied: the two are one table; the checkpoint then usually has no tensor `head`.
    """

    embedding: str
    head: str
    tied: bool


class ExpertNames(msgspec.Struct, frozen=True):
    """Names of the experts of a mixture-of-experts model, which are one tensor [experts, out, in] per weight.

    `module` is their module within a decoder layer; `stacked` maps each tensor in memory to the projections whose rows
    it contains. A checkpoint may instead store the two last dimensions swapped, or one tensor per expert and
    projection: `{module}.{expert}.{projection}.weight`.
    """

    module: str
    stacked: dict[str, tuple[str, ...]]


class SwiftNames(msgspec.Struct, frozen=True):
    """Names of the family in ms-swift.

    `model_type` is a key of its MODEL_MAPPING, which supplies the loader and the names of the vision tower, aligner and
    language model (hence the targets of `all-linear` and the optimizer groups); `template` is a key of its
    TEMPLATE_MAPPING; `requires` are the packages that this use of the model needs. `coordexp.training.ms_swift`
    registers its variants of the two under `our_model_type` and `our_template`.
    """

    model_type: str
    template: str
    requires: tuple[str, ...]

    @property
    def our_model_type(self) -> str:
        """Name of the model type that never runs code from a checkpoint folder."""
        return f"coordexp_{self.model_type}"

    @property
    def our_template(self) -> str:
        """Name of the template that adds coordinate targets."""
        return f"coordexp_{self.template}"


class TinyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and form of a tiny model with random weights; the defaults train within minutes on two CPU cores."""

    hidden: Annotated[int, Meta(ge=1, description="width of the language model")] = 96
    layers: Annotated[int, Meta(ge=1, description="layers of the language model")] = 4
    heads: Annotated[int, Meta(ge=1, description="attention heads of the language model")] = 3
    kv_heads: Annotated[int, Meta(ge=1, description="key and value heads of the language model")] = 3
    head_dim: Annotated[int, Meta(ge=4, multiple_of=4, description="width of an attention head")] = 32
    mlp: Annotated[int, Meta(ge=1, description="inner width of the language model's MLP")] = 256
    vision_hidden: Annotated[int, Meta(ge=1, description="width of the vision tower")] = 96
    vision_layers: Annotated[int, Meta(ge=1, description="layers of the vision tower")] = 3
    vision_heads: Annotated[int, Meta(ge=1, description="attention heads of the vision tower")] = 3
    vision_mlp: Annotated[int, Meta(ge=1, description="inner width of the vision tower's MLP")] = 256
    deepstack: Annotated[
        tuple[int, ...], Meta(description="vision layers whose features are added to the first language layers")
    ] = (0, 1, 2)
    positions: Annotated[
        int, Meta(ge=1, description="side of the learned grid of vision positions, interpolated to the image")
    ] = 16
    experts: Annotated[int, Meta(ge=1, description="experts per layer; mixture-of-experts families only")] = 4
    active_experts: Annotated[int, Meta(ge=1, description="experts per token; mixture-of-experts families only")] = 2
    expert_mlp: Annotated[int, Meta(ge=1, description="inner width of an expert; mixture-of-experts families only")] = (
        128
    )
    attention_interval: Annotated[
        int, Meta(ge=1, description="every N-th layer has full attention; families with linear attention only")
    ] = 2
    tie: Annotated[bool, Meta(description="tie the input and output embeddings")] = True
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Meta(description="dtype of the weights")] = "float32"
    vocab_size: Annotated[
        int, Meta(ge=1, description="entries of the byte-level BPE vocabulary, without the added tokens")
    ] = 1024
    pad_rows: Annotated[int, Meta(ge=0, description="unused rows at the end of the embedding table")] = 0
    max_length: Annotated[int, Meta(ge=1, description="longest sequence, in tokens")] = 32768
    init_std: Annotated[float, Meta(gt=0, description="`initializer_range` of the model's configuration")] = 0.02
    embed_std: Annotated[float, Meta(gt=0, description="standard deviation of the embedding rows")] = 0.1


class RecurrentState(Protocol):
    """State of a layer with linear attention after the accepted tokens, per row of the batch."""

    def accept(self, accepted: Tensor) -> None:
        """Advance over the first `accepted` [B] tokens of the last step."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows with these indices, in this order."""

    def join(self, other: Any) -> None:
        """Append the rows of `other`."""


class ModelFamily(ABC):
    """What CoordExp needs to know about one architecture; the registered name is `model_type` of config.json.

    `config` is the parsed config.json of a checkpoint; `model` is the transformers model in memory, with or without
    adapters.
    """

    tokens: ClassVar[SpecialTokens]
    modules: ClassVar[ModuleNames]
    swift: ClassVar[SwiftNames]
    forward_state: ClassVar[tuple[str, ...]] = ()  # attributes of modules that a forward pass leaves behind
    experts: ClassVar[ExpertNames | None] = None  # of a mixture of experts
    unused_tensors: ClassVar[tuple[str, ...]] = ()  # prefixes of tensors that transformers does not load

    def embeddings(self, config: dict[str, Any]) -> EmbeddingTensors:
        """Names of the embedding tensors of a checkpoint, and whether they are one table."""
        return EmbeddingTensors(f"{self.modules.embedding}.weight", f"{self.modules.head}.weight", self.is_tied(config))

    @abstractmethod
    def is_tied(self, config: dict[str, Any]) -> bool:
        """Whether the input and output embeddings are one table."""

    @abstractmethod
    def untied(self, config: dict[str, Any]) -> dict[str, Any]:
        """A copy of `config` whose output layer has a table of its own."""

    @abstractmethod
    def patch_size(self, config: dict[str, Any]) -> int:
        """Side of a vision patch in pixels."""

    @abstractmethod
    def tile_size(self, config: dict[str, Any]) -> int:
        """Side in pixels of the square that becomes one image token; image sides must be multiples of it."""

    @abstractmethod
    def first_positions(self, model: Any, attention_mask: Tensor) -> Tensor:
        """Rope position [B] of the first token after each prompt.

        `model` has just processed the left-padded prompts, whose `attention_mask` is int64 [B, L].
        """

    @abstractmethod
    def position_ids(self, positions: Tensor) -> Tensor:
        """The `position_ids` argument of the language model for text tokens at rope positions [B, L]."""

    def recurrent_states(self, prefilled: Any) -> dict[int, RecurrentState]:
        """The state of each layer with linear attention, by index, from the `transformers.Cache` of the prompts."""
        return {}

    @contextmanager
    def decoding_step(self, model: Any, states: dict[int, RecurrentState], mask: Tensor) -> Iterator[Any]:
        """Prepare the layers for one decoding step; yields the `attention_mask` argument of the language model.

        states: those of `recurrent_states`, which advance by `accept` after the step. mask: bool [B, 1, W, columns].
        """
        yield mask

    def tensor_shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
        """Name and shape of every tensor of a checkpoint with this config; None if the family does not know them."""
        return None

    def tiny_tokenizer(self, options: TinyOptions) -> Tokenizer:
        """The compact tokenizer of the tiny model; ModelError for a family without a tiny model."""
        raise ModelError(f"{type(self).__name__} has no tiny model\n  -> choose another family for source: tiny")

    def write_tiny(self, folder: Path, options: TinyOptions, tokenizer: Tokenizer, seed: int) -> None:
        """Write a checkpoint of the family's own classes with random weights: weights, tokenizer and processor.

        The same options, tokenizer and seed give the same bytes. ModelError for a family without a tiny model.
        """
        raise ModelError(f"{type(self).__name__} has no tiny model\n  -> choose another family for source: tiny")

    def language_model(self, model: nn.Module) -> nn.Module:
        """The decoder stack of `model`, which takes `inputs_embeds` [B, L, hidden]."""
        return model.get_submodule(self.modules.language_model)


def family_named(model_type: str | None, file: str | Path | None = None) -> ModelFamily:
    """The family with this `model_type`; ModelError with the list of known ones otherwise.

    `file` is named in the error.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        problem = f"unknown model family{nearest(str(model_type), FAMILIES.names())}"
        fix = "use a checkpoint of a known family, or register yours in a plug-in (docs/models.md)"
        expected = FAMILIES.names()
        raise ModelError(located(problem, file=file, field="model_type", expected=expected, found=model_type, fix=fix))
    return FAMILIES[model_type]()


def family_of(folder: str | Path) -> ModelFamily:
    """The family of a checkpoint folder, by `model_type` of its config.json; ModelError if it is not a known one."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(located("not a checkpoint folder", file=folder, expected="config.json"))
    return family_named(read_object(path).get("model_type"), path)
