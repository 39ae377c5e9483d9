"""Training recipes: YAML with `extends`, checked before anything starts.

Sections: `model`, `template`, `data`, `tuner` and `training` go to ms-swift under their own names;
`custom` is ours and is typed here. Values of the later file win; maps merge, lists replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordexp.answers.render import CATEGORY_PROMPT, OPEN_PROMPT, PromptStyle
from coordexp.datasets.samples import SampleOptions
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.losses.options import LossOptions
from coordexp.runtime.config_io import convert, merge, read_extended
from coordexp.runtime.errors import ConfigError, located, nearest
from coordexp.runtime.io import read_json

SWIFT_SECTIONS = ("model", "template", "data", "tuner", "training")
LONG_SAMPLES = ("raise", "delete")  # a sample over template.max_length is an error, or left out and counted

ONLY_TRAINED = "would not reach inference, which asks custom.user_prompt alone"
GOES_ON = "a killed training could not go on as if nothing had been"
# Arguments of ms-swift with which the loss, its logits, the samples or the checkpoints would not be ours, or that would
# do nothing; values that are sound.
FOREIGN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "use_liger_kernel": ("its fused loss makes no logits, which every term reads", (None, False)),
    "sequence_parallel_size": ("a sequence cut over processes tears boxes apart", (None, 1)),
    "enable_dft_loss": ("is another loss", (None, False)),
    "enable_channel_loss": ("is another loss", (None, False)),
    "label_smoothing_factor": ("would not reach the loss; custom.loss.sigma spreads coordinates", (None, 0)),
    "loss_scale": ("would not reach the loss; custom.loss.text weighs text", (None, "default")),
    "system": (ONLY_TRAINED, (None, "")),
    "use_chat_template": (ONLY_TRAINED, (None, True)),
    "response_prefix": (ONLY_TRAINED, (None, "")),
    "enable_thinking": (ONLY_TRAINED, (None,)),
    "add_non_thinking_prefix": (ONLY_TRAINED, (None,)),
    "agent_template": (ONLY_TRAINED, (None,)),
    "template_backend": (ONLY_TRAINED, (None, "swift")),
    "average_tokens_across_devices": ("the loss is normalised by the counts of all processes", (None, True)),
    "router_aux_loss_coef": ("the loss has no such term", (None, 0)),
    "save_only_model": (GOES_ON, (None, False)),
    "ignore_data_skip": (GOES_ON, (None, False)),
    "resume_only_model": (GOES_ON, (None, False)),
    "use_flash_ckpt": ("a checkpoint is whole when saving it returns", (None, False)),
    "save_strategy": ("the result is a checkpoint", (None, "steps", "epoch", "best")),
    "load_best_model_at_end": ("has no effect; custom.detection_eval chooses the checkpoint", (None, False)),
    "split_dataset_ratio": ("has no effect; custom.val_jsonl names what is watched", (None, 0)),
    "columns": ("has no effect on records", (None, {}, "")),
    "dataloader_multiprocessing_context": ("loaders that are not forked would stay in the first epoch", (None, "fork")),
}


Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Factor = Annotated[float, msgspec.Meta(gt=0)]


class CoordTokens(msgspec.Struct, forbid_unknown_fields=True):
    """What the training file holds and what the answers carry.

    enabled: answers carry coordinate tokens; false: text integers 0..999. skip_bbox_norm: the JSONL is
    already in token space and is used as it is; false: it is in pixel space and is quantised here. A file
    in the other space is refused either way.
    """

    enabled: bool = True
    skip_bbox_norm: bool = True


class CoordIdRange(msgspec.Struct, forbid_unknown_fields=True):
    """First and last coordinate id; looked up in the tokenizer when absent, checked against it when given."""

    start: int
    end: int


class CoordOffset(msgspec.Struct, forbid_unknown_fields=True):
    """Trainable offsets on the rows of the coordinate ids; needs `training.optimizer: multimodal_coord_offset`.

    enabled: train them. ids: first and last coordinate id; looked up in the tokenizer when absent, checked
    against it when given. embed_lr: learning rate of the input table. head_lr: of the output table.
    weight_decay: of both tables. dtype: of the tables; `auto` is float32. tie_head: one table serves both
    sides where the base ties its embeddings.
    """

    enabled: bool = False
    ids: CoordIdRange | None = None
    embed_lr: float = 4.0e-4
    head_lr: float = 4.0e-4
    weight_decay: float = 0.0
    dtype: str = "auto"
    tie_head: bool = True


class Augmentation(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of the training images, drawn anew every epoch; off by default.

    flip: probability of a horizontal flip. flip_words: no flip where a description or a category holds a word that
    begins so. scale: smallest and largest factor that a side is multiplied by. crop: probability of a crop.
    crop_area: smallest and largest share of the image's area that a crop keeps. min_visible: an object with less
    of its area left is cut away, and counted. max_blocks: budget in tiles of a changed image; as many as it had
    when absent.
    """

    flip: Fraction = 0.0
    flip_words: tuple[str, ...] = ("left", "right")
    scale: tuple[Factor, Factor] = (1.0, 1.0)
    crop: Fraction = 0.0
    crop_area: tuple[Share, Share] = (0.5, 1.0)
    min_visible: Fraction = 0.3
    max_blocks: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "crop_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected the smaller number first, found [{low}, {high}]")

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return bool(self.flip or self.crop or self.scale != (1.0, 1.0))


class DetectionEval(msgspec.Struct, forbid_unknown_fields=True):
    """Detection on the first images of `val_jsonl` during training, to choose the checkpoint by it.

    every: steps between two evaluations; 0: none, and the last checkpoint is the result. images: how many are
    asked. metric: which number is to be highest: AP, AP50, or F1 (micro, mean over IoU .5:.95). patience:
    evaluations without a new best after which training stops; 0: never. batch_size: images decoded together.
    max_new_tokens: of one answer.
    """

    every: Annotated[int, msgspec.Meta(ge=0)] = 0
    images: Annotated[int, msgspec.Meta(ge=1)] = 64
    metric: Literal["AP", "AP50", "F1"] = "AP"
    patience: Annotated[int, msgspec.Meta(ge=0)] = 0
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 16
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] = 2048

    def since_best(self, history: list[dict[str, Any]], best_step: int) -> int:
        """Evaluations in a trainer's log after the best one."""
        return sum(f"eval_{self.metric}" in row and row["step"] > best_step for row in history)

    def is_over(self, history: list[dict[str, Any]], best_step: int | None) -> bool:
        """Whether patience is at its end, by a trainer's log and its best step so far."""
        return bool(self.patience and best_step and self.since_best(history, best_step) >= self.patience)


class Custom(msgspec.Struct, forbid_unknown_fields=True):
    """The `custom` section. Paths are filled in by the workflow when it runs the recipe.

    Keys that are not named here say which samples are drawn (`SampleOptions`) and how they are written
    (`PromptStyle`). train_jsonl, val_jsonl: records to train on, records to watch. fusion_config: several data
    sets with ratios (YAML or JSON), instead of `train_jsonl`. categories: table of the categories that prompts
    may name, where a source of the mixture has none of its own. sample_seed: of orders and of the categories in
    prompts. emit_norm: codec of the bins.
    """

    train_jsonl: str | None = None
    val_jsonl: str | None = None
    fusion_config: str | None = None
    categories: str | None = None
    object_ordering: Literal["sorted", "random"] = "sorted"
    orders_per_sample: int = 1
    category_ratio: float = 0.0
    negatives: int = 5
    sample_seed: int = 17
    emit_norm: EmitNorm = "norm1000"
    user_prompt: str = OPEN_PROMPT
    category_prompt: str = CATEGORY_PROMPT
    object_field_order: Literal["desc_first", "geometry_first"] = "desc_first"
    json_format: Literal["standard", "compact"] = "standard"
    coord_tokens: CoordTokens = msgspec.field(default_factory=CoordTokens)
    coord_offset: CoordOffset = msgspec.field(default_factory=CoordOffset)
    loss: LossOptions = msgspec.field(default_factory=LossOptions)
    augmentation: Augmentation = msgspec.field(default_factory=Augmentation)
    detection_eval: DetectionEval = msgspec.field(default_factory=DetectionEval)

    @property
    def samples(self) -> SampleOptions:
        """What a training example asks and shows under this recipe."""
        return msgspec.convert(
            {
                "object_ordering": self.object_ordering,
                "orders_per_sample": self.orders_per_sample,
                "category_ratio": self.category_ratio,
                "negatives": self.negatives,
                "seed": self.sample_seed,
            },
            SampleOptions,
        )

    @property
    def style(self) -> PromptStyle:
        """How prompts and answers are rendered under this recipe."""
        return PromptStyle(
            user_prompt=self.user_prompt,
            category_prompt=self.category_prompt,
            object_field_order=self.object_field_order,
            json_format=self.json_format,
            coordinates="token" if self.coord_tokens.enabled else "integer",
        )


class Recipe(msgspec.Struct):
    """A resolved recipe: five ms-swift sections as plain maps and the typed `custom` section."""

    model: dict[str, Any]
    template: dict[str, Any]
    data: dict[str, Any]
    tuner: dict[str, Any]
    training: dict[str, Any]
    custom: Custom

    @property
    def swift_arguments(self) -> dict[str, Any]:
        """The ms-swift sections as one flat map, names unchanged."""
        return {key: value for section in SWIFT_SECTIONS for key, value in getattr(self, section).items()}


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe at `path` with everything it extends and `overrides` on top; ConfigError when it is not sound."""
    raw = merge(read_extended(path), overrides or {})
    return typed(raw, path)


def trained_by(model_dir: str | Path) -> Custom:
    """The `custom` section that a merged checkpoint was trained by; the defaults when it does not say."""
    manifest = Path(model_dir) / "merge_manifest.json"
    recipe = read_json(manifest)["trained"].get("recipe") if manifest.is_file() else None
    return convert(recipe["custom"], Custom, manifest, "trained.recipe.custom") if recipe else Custom()


def typed(raw: Mapping[str, Any], path: str | Path) -> Recipe:
    """Check the sections and names of a merged map."""
    known = (*SWIFT_SECTIONS, "custom")
    for key in raw:
        if key not in known:
            raise ConfigError(located(f"unknown section{nearest(key, known)}", file=path, field=key, expected=known))
    sections = {name: dict(raw.get(name) or {}) for name in SWIFT_SECTIONS}
    _check_names(sections, path)
    _check_values(sections, path)
    custom = convert(raw.get("custom") or {}, Custom, path, "custom")
    if custom.coord_offset.enabled and sections["training"].get("optimizer") != "multimodal_coord_offset":
        problem = "is enabled, but the offsets would be in no optimizer group"
        fix = "set training.optimizer: multimodal_coord_offset"
        raise ConfigError(located(problem, file=path, field="custom.coord_offset", fix=fix))
    if custom.detection_eval.every:
        _check_saving(sections["training"], path)
    _check_effects(custom, path)
    return Recipe(**sections, custom=custom)


def _check_names(sections: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    owner: dict[str, str] = {}
    for section, values in sections.items():
        for key in values:
            if key in owner:
                raise ConfigError(located(f"stands in `{owner[key]}` too", file=path, field=f"{section}.{key}"))
            owner[key] = section


def _check_values(sections: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """ConfigError for values of ms-swift's arguments with which its loss would not be ours, or an answer be cut."""
    given = {key: (section, value) for section, values in sections.items() for key, value in values.items()}

    def refuse(key: str, problem: str, fix: str) -> None:
        section, value = given[key]
        raise ConfigError(located(problem, file=path, field=f"{section}.{key}", found=value, fix=fix))

    if given.get("truncation_strategy", ("", None))[1] not in (None, *LONG_SAMPLES):
        refuse("truncation_strategy", "an answer is never cut", f"choose one of {', '.join(LONG_SAMPLES)}")
    flash = str(given.get("attn_impl", ("", None))[1]).startswith("flash")
    for key in ("packing", "padding_free"):
        if given.get(key, ("", False))[1] and not flash:
            refuse(key, "only flash attention keeps the packed samples apart", "set model.attn_impl: flash_attention_2")
    for key, (problem, harmless) in FOREIGN.items():
        if key in given and given[key][1] not in harmless:
            refuse(key, problem, "remove it")


def _check_effects(custom: Custom, path: str | Path) -> None:
    """ConfigError for a setting that would do nothing because of another."""
    loss, tokens = custom.loss, "custom.coord_tokens.enabled: true"
    geometry, shuffled = "a weight for custom.loss.l1, giou or ciou", custom.object_ordering == "random"
    for field, given, has_effect, needs in (
        ("loss.set_targets", loss.set_targets != "none", custom.coord_tokens.enabled, tokens),
        ("loss.matching", loss.matching != "none", custom.coord_tokens.enabled, tokens),
        ("loss.matching", loss.matching != "none", loss.l1 or loss.giou or loss.ciou, geometry),
        ("coord_offset.enabled", custom.coord_offset.enabled, custom.coord_tokens.enabled, tokens),
        ("orders_per_sample", custom.orders_per_sample > 1, shuffled, "custom.object_ordering: random"),
        ("category_prompt", True, "{categories}" in custom.category_prompt, "{categories} in the text"),
    ):
        if given and not has_effect:
            raise ConfigError(located("has no effect", file=path, field=f"custom.{field}", fix=f"it needs {needs}"))


def _check_saving(training: Mapping[str, Any], path: str | Path) -> None:
    """Detection during training needs the best checkpoint to be saved when it is found, and kept."""
    limit = training.get("save_total_limit")
    if training.get("save_strategy", "steps") != "steps":
        problem, fix = "needs checkpoints by step", "set training.save_strategy: steps"
    elif limit == 1:
        problem, fix = "keeps two checkpoints, the best and the newest", "set training.save_total_limit: 2 or more"
    else:
        return
    raise ConfigError(located(problem, file=path, field="custom.detection_eval", fix=fix))
