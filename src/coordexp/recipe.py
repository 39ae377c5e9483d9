"""Training recipes: YAML files with `extends`, validated before training starts.

The sections `model`, `template`, `data`, `tuner` and `training` are passed to ms-swift under its own argument names;
`custom` is declared here. Maps merge key by key and the later file wins; lists are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.answers.render import PromptStyle
from coordexp.datasets.augmentation_options import Augmentation
from coordexp.datasets.samples import SampleOptions
from coordexp.evaluation.metrics import CHECKPOINT_METRICS, PHRASE_PREFIX
from coordexp.geometry.norm1000 import EmitNorm
from coordexp.geometry.slices import SliceOptions
from coordexp.losses.options import LossOptions
from coordexp.ms_swift_arguments import check_arguments, check_refusals
from coordexp.runtime.config_io import check_finite, choice, convert, declared, merge, read_extended
from coordexp.runtime.errors import ConfigError, located, nearest
from coordexp.runtime.io import read_json
from coordexp.runtime.secrets import refuse_secrets
from coordexp.sequence_options import PrefixOptions, RolloutOptions

SWIFT_SECTIONS = ("model", "template", "data", "tuner", "training")


class CoordTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coordinates in the training files and in the answers. A file in the other coordinate space is refused."""

    enabled: Annotated[
        bool, Meta(description="answers contain coordinate tokens; false: text integers 0..999 instead")
    ] = True
    skip_bbox_norm: Annotated[
        bool,
        Meta(
            description="the JSONL is already in token space (`.coord.jsonl`); false: it is in pixels and is quantised"
        ),
    ] = True


class CoordIdRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First and last coordinate token id."""

    start: Annotated[int, Meta(ge=0, description="id of `<|coord_0|>`")]
    end: Annotated[int, Meta(ge=0, description="id of `<|coord_999|>`")]


class CoordOffset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Trainable offsets on the embedding rows of the coordinate tokens."""

    enabled: Annotated[bool, Meta(description="train offsets; needs `training.optimizer: multimodal_coord_offset`")] = (
        False
    )
    ids: Annotated[
        CoordIdRange | None,
        Meta(description="expected coordinate token ids, checked against the tokenizer; null: the tokenizer's"),
    ] = None
    embed_lr: Annotated[float, Meta(ge=0, description="learning rate of the offsets on the input embedding")] = 4.0e-4
    head_lr: Annotated[float, Meta(ge=0, description="learning rate of the offsets on the output layer")] = 4.0e-4
    weight_decay: Annotated[float, Meta(ge=0, description="weight decay of both tables of offsets")] = 0.0
    dtype: Annotated[str, Meta(description="dtype of both tables; `auto` is float32")] = "auto"
    tie_head: Annotated[
        bool, Meta(description="share one table between input and output if the base model ties its embeddings")
    ] = True


class DetectionEval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evaluation of detection during training, on the first images of `val_jsonl`; selects the best checkpoint."""

    every: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["epoch"],
        Meta(
            description="optimizer steps between evaluations, or `epoch`, which also saves a checkpoint per epoch; "
            "0: no evaluation; the last checkpoint is the result"
        ),
    ] = 0
    images: Annotated[int, Meta(ge=1, description="number of images evaluated")] = 64
    train_images: Annotated[
        int,
        Meta(
            ge=0,
            description="number of training images evaluated in addition, at most `images` (the first ones of "
            "`train_jsonl`); a large difference from the validation images indicates overfitting",
        ),
    ] = 16
    image_use: Annotated[
        int,
        Meta(
            ge=0,
            description="number of validation images on which to measure whether the model uses the image: coordinates "
            "and answers with the right image, another one and a blank one",
        ),
    ] = 16
    metric: choice(
        CHECKPOINT_METRICS, "metric of eval.json by which the best checkpoint is selected; higher is better"
    ) = "AP"
    patience: Annotated[
        int, Meta(ge=0, description="stop after this many evaluations without improvement; 0: never")
    ] = 0
    batch_size: Annotated[int, Meta(ge=1, description="images decoded at the same time")] = 16
    max_new_tokens: Annotated[int, Meta(ge=1, description="longest answer, in tokens")] = 2048
    slices: Annotated[
        SliceOptions | None,
        Meta(description="evaluate on slices of the images, with the keys of predict.slices; null: on whole images"),
    ] = None

    def is_due(self, step: int, epoch: float | None, last_step: int) -> bool:
        """Whether to evaluate after optimizer step `step` of `last_step`, at the end of `epoch` if it is integral."""
        if step == last_step:
            return True
        return epoch is not None and float(epoch).is_integer() if self.every == "epoch" else step % self.every == 0

    def evaluations_since_improvement(self, history: list[dict[str, Any]]) -> int:
        """Number of evaluations in a trainer's log history after the first one with the highest value."""
        values = [row[key] for row in history if (key := f"eval_{self.metric}") in row]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def patience_exhausted(self, history: list[dict[str, Any]]) -> bool:
        """Whether training stops early, given a trainer's log history."""
        return bool(self.patience) and self.evaluations_since_improvement(history) >= self.patience


class Custom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section `custom` of a recipe. The workflow fills in the paths.

    Options of samples and prompts are declared in `SampleOptions` and `PromptStyle`.
    """

    train_jsonl: Annotated[str | None, Meta(description="records to train on")] = None
    val_jsonl: Annotated[str | None, Meta(description="records to validate on during training")] = None
    fusion_config: Annotated[
        str | None,
        Meta(
            description="mixture file (YAML or JSON): several datasets with sampling ratios, instead of `train_jsonl`"
        ),
    ] = None
    categories: Annotated[
        str | None,
        Meta(description="category table (JSON) for prompts; a source of a mixture may have its own instead"),
    ] = None
    object_ordering: declared(SampleOptions, "object_ordering") = SampleOptions().object_ordering
    orders_per_sample: declared(SampleOptions, "orders_per_sample") = SampleOptions().orders_per_sample
    category_ratio: declared(SampleOptions, "category_ratio") = SampleOptions().category_ratio
    negatives: declared(SampleOptions, "negatives") = SampleOptions().negatives
    max_named: declared(SampleOptions, "max_named") = SampleOptions().max_named
    absent_only: declared(SampleOptions, "absent_only") = SampleOptions().absent_only
    named_categories: declared(SampleOptions, "named_categories") = SampleOptions().named_categories
    phrase_ratio: declared(SampleOptions, "phrase_ratio") = SampleOptions().phrase_ratio
    sample_seed: declared(SampleOptions, "seed") = SampleOptions().seed
    emit_norm: Annotated[
        EmitNorm,
        Meta(
            description="codec that converts coordinates to bins; `norm1000_legacy` is for checkpoints trained with it"
        ),
    ] = "norm1000"
    user_prompt: declared(PromptStyle, "user_prompt") = PromptStyle().user_prompt
    category_prompt: declared(PromptStyle, "category_prompt") = PromptStyle().category_prompt
    answer_format: declared(PromptStyle, "answer_format") = PromptStyle().answer_format
    phrase_prompt: declared(PromptStyle, "phrase_prompt") = PromptStyle().phrase_prompt
    object_field_order: declared(PromptStyle, "object_field_order") = PromptStyle().object_field_order
    json_format: declared(PromptStyle, "json_format") = PromptStyle().json_format
    coord_tokens: Annotated[CoordTokens, Meta(description="coordinates in files and answers")] = CoordTokens()
    coord_offset: Annotated[CoordOffset, Meta(description="trainable offsets of the coordinate tokens")] = CoordOffset()
    loss: Annotated[LossOptions, Meta(description="the training loss")] = msgspec.field(default_factory=LossOptions)
    augmentation: Annotated[Augmentation, Meta(description="augmentation of training images")] = Augmentation()
    prefix: Annotated[PrefixOptions, Meta(description="perturbed prefixes of the answers in training")] = (
        PrefixOptions()
    )
    rollout: Annotated[RolloutOptions, Meta(description="training on the model's own answers")] = RolloutOptions()
    detection_eval: Annotated[DetectionEval, Meta(description="evaluation of detection during training")] = (
        DetectionEval()
    )

    @property
    def evaluates_phrases(self) -> bool:
        """Whether evaluation asks for phrases: all samples do, or some do and the checkpoint's metric is of phrases."""
        measured = self.detection_eval.metric.startswith(PHRASE_PREFIX)
        return self.phrase_ratio == 1 or (measured and self.phrase_ratio > 0)

    @property
    def samples(self) -> SampleOptions:
        """How training samples are drawn from records."""
        return SampleOptions(
            object_ordering=self.object_ordering,
            orders_per_sample=self.orders_per_sample,
            category_ratio=self.category_ratio,
            negatives=self.negatives,
            max_named=self.max_named,
            absent_only=self.absent_only,
            named_categories=self.named_categories,
            phrase_ratio=self.phrase_ratio,
            seed=self.sample_seed,
        )

    @property
    def style(self) -> PromptStyle:
        """How prompts and answers are rendered."""
        return PromptStyle(
            user_prompt=self.user_prompt,
            category_prompt=self.category_prompt,
            answer_format=self.answer_format,
            phrase_prompt=self.phrase_prompt,
            object_field_order=self.object_field_order,
            json_format=self.json_format,
            coordinates="token" if self.coord_tokens.enabled else "integer",
        )


class Recipe(msgspec.Struct, frozen=True):
    """A resolved recipe: five sections of ms-swift arguments as plain maps, and the typed `custom` section."""

    model: dict[str, Any]
    template: dict[str, Any]
    data: dict[str, Any]
    tuner: dict[str, Any]
    training: dict[str, Any]
    custom: Custom

    @property
    def swift_arguments(self) -> dict[str, Any]:
        """The ms-swift sections as one flat map of argument names."""
        return {key: value for section in SWIFT_SECTIONS for key, value in getattr(self, section).items()}


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    root: str | Path = ".",
    name: str = "recipe",
) -> Recipe:
    """The recipe in a file, or an inline map, with everything that it extends and `overrides` on top.

    A relative path, of `source` or in the `extends` of an inline map, starts at `root`. ConfigError if the recipe is
    invalid; its message calls an inline map `name`. Plug-ins must be loaded before, so that their loss terms are known.
    """
    if isinstance(source, Mapping):
        raw, file = _extend_inline(source, Path(root)), name
    else:
        file = Path(root) / source
        raw = read_extended(file)
    return parse_recipe(merge(raw, overrides or {}), file)


def checkpoint_custom(model_dir: str | Path) -> Custom:
    """The `custom` section that a merged checkpoint was trained with; the defaults if it does not record one."""
    manifest = Path(model_dir) / "merge_manifest.json"
    if not manifest.is_file():
        return Custom()
    try:
        trained = msgspec.convert(read_json(manifest), dict[str, Any]).get("trained")
        recipe = msgspec.convert(trained, dict[str, Any]).get("recipe")
        recorded = msgspec.convert(recipe, dict[str, dict[str, Any]] | None)
    except msgspec.ValidationError as error:
        raise ConfigError(located(f"malformed manifest: {error}", file=manifest, fix="merge again")) from error
    return convert(recorded.get("custom", {}), Custom, manifest, "trained.recipe.custom") if recorded else Custom()


def parse_recipe(raw: Mapping[str, Any], file: str | Path) -> Recipe:
    """Validate a merged map; `file` appears in error messages."""
    known = (*SWIFT_SECTIONS, "custom")
    for key, section in raw.items():
        if key not in known:
            raise ConfigError(located(f"unknown section{nearest(key, known)}", file=file, field=key, expected=known))
        if not isinstance(section, Mapping | None):
            raise ConfigError(located("expected a map of arguments", file=file, field=key, found=section))
    refuse_secrets(raw, file)
    sections = {name: dict(raw.get(name) or {}) for name in SWIFT_SECTIONS}
    _check_repeated(sections, file)
    check_arguments(sections, file)
    check_finite(sections, file)
    check_refusals(sections, file)
    custom = convert(raw.get("custom") or {}, Custom, file, "custom")
    if custom.coord_offset.enabled and sections["training"].get("optimizer") != "multimodal_coord_offset":
        problem = "no optimizer group would contain the offsets"
        fix = "set training.optimizer: multimodal_coord_offset"
        raise ConfigError(located(problem, file=file, field="custom.coord_offset.enabled", fix=fix))
    if custom.detection_eval.every:
        _check_saving(sections["training"], file)
        _check_metric(custom, file)
    _check_effects(custom, file)
    return Recipe(**sections, custom=custom)


def _extend_inline(source: Mapping[str, Any], root: Path) -> dict[str, Any]:
    parents = source.get("extends") or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, read_extended(root / parent))
    return merge(merged, {key: value for key, value in source.items() if key != "extends"})


def _check_repeated(sections: Mapping[str, Mapping[str, Any]], file: str | Path) -> None:
    section_of: dict[str, str] = {}
    for section, values in sections.items():
        for key in values:
            if key in section_of:
                problem = f"already set in section `{section_of[key]}`"
                raise ConfigError(located(problem, file=file, field=f"{section}.{key}"))
            section_of[key] = section


def _check_effects(custom: Custom, file: str | Path) -> None:
    """ConfigError for an option that would have no effect because of another."""
    loss, tokens = custom.loss, "custom.coord_tokens.enabled: true"
    box_weight, shuffled = "a weight for a box term (l1, giou, ciou)", custom.object_ordering == "random"
    named, naming = custom.category_ratio > 0, "custom.category_ratio above 0"
    unlikely, keeps = loss.weights.get("unlikelihood", 0) > 0, custom.rollout.false_positives == "keep"
    in_json, json = custom.answer_format == "json", "custom.answer_format: json"
    crops, on_object = custom.augmentation.crop > 0, custom.augmentation.crop_on_object > 0
    cropping, centring = "custom.augmentation.crop above 0", "custom.augmentation.crop_on_object above 0"
    for field, given, has_effect, needs in (
        ("object_field_order", custom.object_field_order != "desc_first", in_json, json),
        ("json_format", custom.json_format != "standard", in_json, json),
        ("loss.set_targets", loss.set_targets != "none", custom.coord_tokens.enabled, tokens),
        ("loss.balance", loss.balance > 0, loss.set_targets == "marginal", "custom.loss.set_targets: marginal"),
        ("loss.matching", loss.matching != "none", custom.coord_tokens.enabled, tokens),
        ("loss.matching", loss.matching != "none", loss.uses("box"), box_weight),
        ("coord_offset.enabled", custom.coord_offset.enabled, custom.coord_tokens.enabled, tokens),
        ("prefix", custom.prefix.active, custom.coord_tokens.enabled, tokens),
        ("rollout.share", custom.rollout.active, custom.coord_tokens.enabled, tokens),
        ("loss.weights.unlikelihood", unlikely, custom.rollout.active, "custom.rollout.share above 0"),
        ("loss.weights.unlikelihood", unlikely, keeps, "custom.rollout.false_positives: keep"),
        ("max_named", custom.max_named is not None, named, naming),
        ("absent_only", custom.absent_only > 0, named, naming),
        ("absent_only", custom.absent_only > 0, custom.negatives > 0, "custom.negatives above 0"),
        ("named_categories", custom.named_categories is not None, named, naming),
        ("augmentation.crop_on_object", on_object, crops, cropping),
        ("augmentation.object_side", custom.augmentation.object_side is not None, on_object, centring),
        ("augmentation.empty_answers", custom.augmentation.empty_answers, crops, cropping),
        ("augmentation.empty_answers", custom.augmentation.empty_answers, named, naming),
        ("orders_per_sample", custom.orders_per_sample > 1, shuffled, "custom.object_ordering: random"),
        ("category_prompt", True, "{categories}" in custom.category_prompt, "{categories} in the text"),
        ("phrase_prompt", True, "{phrase}" in custom.phrase_prompt, "{phrase} in the text"),
    ):
        if given and not has_effect:
            raise ConfigError(located("has no effect", file=file, field=f"custom.{field}", fix=f"it needs {needs}"))
    for option, share in (("prefix.continued", custom.prefix.continued), ("rollout.share", custom.rollout.share)):
        if share and custom.object_field_order != "desc_first":
            problem, fix = f"cannot be combined with {option} {share:g}", "set it to desc_first"
            raise ConfigError(located(problem, file=file, field="custom.object_field_order", fix=fix))


def _check_metric(custom: Custom, file: str | Path) -> None:
    """ConfigError unless training has the prompts that the metric evaluates: of phrases, or of detection."""
    metric, phrases = custom.detection_eval.metric, custom.evaluates_phrases
    if metric.startswith(PHRASE_PREFIX) != phrases:
        field = "custom.detection_eval.metric"
        expected = f"{PHRASE_PREFIX}accuracy_50 or another metric of phrases" if phrases else "a metric of detection"
        problem = f"{'every' if phrases else 'no'} training sample asks for a phrase"
        problem += f" (custom.phrase_ratio: {custom.phrase_ratio:g})"
        raise ConfigError(located(problem, file=file, field=field, expected=expected, found=metric))
    if phrases and custom.detection_eval.slices is not None:
        problem = "a slice of the image may not show what a phrase refers to"
        raise ConfigError(located(problem, file=file, field="custom.detection_eval.slices", fix="set it to null"))


def _check_saving(training: Mapping[str, Any], file: str | Path) -> None:
    """ConfigError unless the best checkpoint of detection during training is saved at once and kept."""
    limit = training.get("save_total_limit")
    if training.get("save_strategy", "steps") != "steps":
        problem, fix = "needs checkpoints at given steps", "set training.save_strategy: steps"
    elif limit == 1:
        problem, fix = "keeps two checkpoints, the best and the newest", "set training.save_total_limit: 2 or more"
    else:
        return
    raise ConfigError(located(problem, file=file, field="custom.detection_eval", fix=fix))
