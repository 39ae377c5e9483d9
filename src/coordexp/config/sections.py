"""The types of the workflow's configuration, section by section.

Options that a part of the library uses are declared there; a section here inherits them and adds what only the workflow
uses. JSON schema, validation, the reference page and the choices in rules are generated from `WorkflowConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordexp.config.sweeps import Sweep
from coordexp.datasets.convert import ConvertOptions
from coordexp.datasets.formats import FORMATS
from coordexp.evaluation.evaluate import EvaluateOptions
from coordexp.inference.options import CalibrateOptions, PredictOptions
from coordexp.modeling.embedding_init import Init
from coordexp.modeling.families import DEFAULT_FAMILY, FAMILIES, TinyOptions
from coordexp.recipe import Custom
from coordexp.runtime.config_io import choice, declared, variants

SPLIT = r"(?!calibration(?![A-Za-z0-9_-]))[A-Za-z0-9][A-Za-z0-9_-]*(?<!_tiny)(?<!_rest)"  # name of a split in a path
Split = Annotated[str, Meta(pattern=f"^{SPLIT}$", title="split name")]


class Roles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The splits of a dataset by their purpose."""

    train: Annotated[Split, Meta(description="split that is trained on")] = "train"
    val: Annotated[Split, Meta(description="split that the checkpoint is selected on")] = "val"
    test: Annotated[Split, Meta(description="split for the final results; used for nothing else")] = "test"

    def split(self, name: str) -> str:
        """The split that a role, a name of a split, or one of these with `_tiny` means."""
        role, tiny = name.removesuffix("_tiny"), "_tiny" if name.endswith("_tiny") else ""
        return (getattr(self, role) if role in ROLES else role) + tiny


ROLES = Roles.__struct_fields__


class DataOptions(ConvertOptions, frozen=True, forbid_unknown_fields=True):
    """Options of the conversion and of the splits that are made from its records."""

    num_workers: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="NUM_WORKERS: worker processes of the conversion; null: 16, or `--cores` if fewer"),
    ] = None
    shards: Annotated[
        int,
        Meta(ge=1, description="number of jobs that convert the images of a split; the result does not depend on it"),
    ] = 1
    tiny: Annotated[int, Meta(ge=1, description="TINY: number of images in the tiny split")] = 256
    roles: Annotated[
        Roles, Meta(description="names of the dataset's splits by role, where they differ from train, val and test")
    ] = Roles()


class DataSection(DataOptions, frozen=True, forbid_unknown_fields=True):
    """Options of the conversion, and the folders of the workflow."""

    raw_root: Annotated[str, Meta(description="RAW_ROOT: folder of downloads and generated sources")] = "resources"
    output_base: Annotated[str, Meta(description="OUTPUT_BASE: folder of all results")] = "results"
    splits: Annotated[
        tuple[Split, ...],
        Meta(min_length=1, description="SPLITS: splits or roles of the target results/{run}/data/complete"),
    ] = ("train", "val")


class HubModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A checkpoint on a hub, at a pinned revision."""

    repo: Annotated[str, Meta(description="repository on the hub")]
    revision: Annotated[str, Meta(description="pinned revision (a commit)")]


class FolderModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A checkpoint in a folder of your own."""

    path: Annotated[str, Meta(description="folder of the checkpoint")]


class TinyModel(TinyOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small model with random weights, for demos and tests."""

    family: choice(FAMILIES, "model family whose classes are used") = DEFAULT_FAMILY
    seed: Annotated[int, Meta(ge=0, description="seed of the random weights")] = 0


class RunModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The merged checkpoint of another run."""

    run: Annotated[str, Meta(description="name of the run")]


class VocabOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the base gets its coordinate tokens."""

    init: Annotated[
        Init | Literal["none"],
        Meta(
            description="initialisation of the 1,001 new embedding rows: `numeric` from the digits of the coordinate "
            "and a smooth function of it, `mean` from the mean of all rows; `none`: no tokens are added (for "
            "recipes with custom.coord_tokens.enabled: false)"
        ),
    ] = "numeric"


class TrainOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes and threads of the train rule; the recipe has the options of the training itself."""

    processes: Annotated[int, Meta(ge=1, description="training processes (GPUs) per machine; 1 on a CPU")] = 1
    nodes: Annotated[
        int, Meta(ge=1, description="machines; more than one requires a SLURM job or a manual launch (docs/cluster.md)")
    ] = 1
    threads: Annotated[
        int,
        Meta(
            ge=1, description="CPU threads per machine of the rules train and predict, shared by the training processes"
        ),
    ] = 8
    rerun_on_code_change: Annotated[
        bool,
        Meta(
            description="retrain when code that training depends on has changed; by default a finished training "
            "run is kept, and the plan and the report state which version of the code produced it"
        ),
    ] = False


class PredictSection(PredictOptions, frozen=True, forbid_unknown_fields=True):
    """Options of prediction; null uses the setting that the model was trained with."""

    temperature: Annotated[
        declared(PredictOptions, "temperature") | None,
        Meta(description="divides the logits of the coordinate bins; null: the recipe's custom.loss.temperature"),
    ] = None
    geometry: Annotated[
        declared(PredictOptions, "geometry") | None,
        Meta(description="geometry types that an answer may contain; null: those of the records (data.geometry)"),
    ] = None
    poly_max_points: Annotated[
        declared(PredictOptions, "poly_max_points") | None,
        Meta(description="maximum number of points of a predicted polygon; null: data.poly_max_points"),
    ] = None


class EvaluateSection(EvaluateOptions, frozen=True, forbid_unknown_fields=True):
    """Options of the evaluation."""

    on_bad: Annotated[
        declared(EvaluateOptions, "on_bad") | None,
        Meta(description="invalid annotations: `error`, or `skip` (left out and counted); null: data.on_bad"),
    ] = None


class ReportOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the report."""

    gallery: Annotated[int, Meta(ge=0, description="number of images shown")] = 24


class InlineRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe in the configuration: sections over those of the recipe that it extends."""

    extends: Annotated[
        str | tuple[str, ...] | None,
        Meta(description="recipe file(s), relative to the repository; default: the recipe of the parent run"),
    ] = None
    model: Annotated[dict[str, Any], Meta(description="ms-swift's model arguments")] = {}
    template: Annotated[dict[str, Any], Meta(description="ms-swift's template arguments")] = {}
    data: Annotated[dict[str, Any], Meta(description="ms-swift's data arguments")] = {}
    tuner: Annotated[dict[str, Any], Meta(description="ms-swift's tuner arguments")] = {}
    training: Annotated[dict[str, Any], Meta(description="ms-swift's training arguments")] = {}
    custom: Annotated[Custom | None, Meta(description="CoordExp's own section")] = None


class RunEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a run, or of every run of a dataset; they override the sections of the configuration."""

    extends: Annotated[str | None, Meta(description="parent run, whose settings are inherited")] = None
    records_from: Annotated[
        str | None,
        Meta(
            description="run whose records are read instead of converting again; the parent, unless `extends` names one"
        ),
    ] = None
    checkpoint_from: Annotated[
        str | None, Meta(description="parent run, whose trained checkpoint is used instead of training again")
    ] = None
    dataset: Annotated[str | None, Meta(description="name in `datasets`; default: the parent's")] = None
    max_blocks: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="MAX_BLOCKS: image budget in tiles of factor x factor pixels; default: the parent's"),
    ] = None
    model: Annotated[str | None, Meta(description="name in `models`")] = None
    recipe: Annotated[
        str | InlineRecipe | None,
        Meta(description="recipe file, relative to the repository, or an inline recipe"),
    ] = None
    data: Annotated[DataOptions | None, Meta(description="overrides of `data`")] = None
    vocab: Annotated[VocabOptions | None, Meta(description="overrides of `vocab`")] = None
    train: Annotated[TrainOptions | None, Meta(description="overrides of `train`")] = None
    predict: Annotated[PredictSection | None, Meta(description="overrides of `predict`")] = None
    calibrate: Annotated[CalibrateOptions | None, Meta(description="overrides of `calibrate`")] = None
    evaluate: Annotated[EvaluateSection | None, Meta(description="overrides of `evaluate`")] = None
    report: Annotated[ReportOptions | None, Meta(description="overrides of `report`")] = None


MODELS = {"hf": HubModel, "modelscope": HubModel, "path": FolderModel, "tiny": TinyModel, "run": RunModel}
Dataset = variants(
    "format",
    lambda: {name: FORMATS[name].Options for name in FORMATS.names()},
    "format of the annotations, or `shapes`, `shapes_refer`, `cells` or `shelf` for generated images",
)
Model = variants("source", lambda: MODELS, "where the checkpoint comes from")


class WorkflowConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of the workflow: config/config.yaml and the user's overrides."""

    plugins: Annotated[
        tuple[str, ...], Meta(description="plug-ins: Python files that register extensions (docs/architecture.md)")
    ] = ()
    datasets: Annotated[dict[str, Dataset], Meta(description="datasets by name")] = {}
    data: Annotated[DataSection, Meta(description="conversion of datasets to records")] = DataSection()
    models: Annotated[dict[str, Model], Meta(description="base checkpoints by name")] = {}
    vocab: Annotated[VocabOptions, Meta(description="coordinate tokens of the base model")] = VocabOptions()
    runs: Annotated[dict[str, RunEntry], Meta(description="settings of runs, by dataset or run name")] = {}
    train: Annotated[TrainOptions, Meta(description="resources of training")] = TrainOptions()
    predict: Annotated[PredictSection, Meta(description="prediction")] = PredictSection()
    calibrate: Annotated[CalibrateOptions, Meta(description="calibration of scores")] = CalibrateOptions()
    evaluate: Annotated[EvaluateSection, Meta(description="evaluation")] = EvaluateSection()
    report: Annotated[ReportOptions, Meta(description="the report")] = ReportOptions()
    sweeps: Annotated[dict[str, Sweep], Meta(description="sweeps over runs, by name")] = {}
