"""The checked configuration of the workflow, and the look-ups that its rules need."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from coordexp.config import runs
from coordexp.config.names import check_names
from coordexp.config.runs import Run, Runs
from coordexp.config.sections import SPLIT, DataSection, Roles, VocabOptions, WorkflowConfig
from coordexp.datasets.convert import ConvertOptions
from coordexp.datasets.download import local_annotations_sha256, options_for_split
from coordexp.datasets.formats import check_split, known_splits, open_format
from coordexp.datasets.mixture import mixture_files
from coordexp.inference.options import PredictOptions, check_options
from coordexp.modeling import checkpoint_files
from coordexp.recipe import Recipe, load_recipe
from coordexp.runtime.config_io import checked, merge
from coordexp.runtime.errors import ConfigError, CoordExpError, located
from coordexp.runtime.http_download import hide_urls, secret_urls
from coordexp.runtime.plugins import load_plugins
from coordexp.runtime.secrets import refuse_secrets

DEFAULTS = Path("config/config.yaml")


class Settings:
    """The configuration of the workflow. Paths that it returns are relative to the working directory."""

    def __init__(self, config: Mapping[str, Any], root: Path, plugins: list[Path]):
        self.config, self.root, self.plugins = config, root, plugins
        self.data = msgspec.convert(config.get("data", {}), DataSection)
        self.vocab = msgspec.convert(config.get("vocab", {}), VocabOptions)
        self.datasets: Mapping[str, dict[str, Any]] = config.get("datasets", {})
        self.runs = Runs(config)
        self._recipes: dict[str, Recipe] = {}

    @classmethod
    def load(cls, config: Mapping[str, Any], root: Path) -> Settings:
        """Import the plug-ins, then check every section and run; ConfigError that lists every problem."""
        refuse_secrets(config, "configuration")
        files = config.get("plugins") or []
        plugins = load_plugins(root / file for file in ([files] if isinstance(files, str) else files))
        check_names(config)
        settings = cls(checked(config, WorkflowConfig), root, plugins)
        settings.runs.check()
        for name, entry in settings.runs.entries.items():
            if isinstance(entry.get("recipe"), Mapping) and name not in settings.datasets:
                settings.recipe(name)
        return settings

    def run(self, name: str) -> Run:
        """The run of this name; ConfigError for an unknown run, or one without model and recipe."""
        return self.runs.resolve(name)

    def results(self, *parts: str) -> str:
        """A path below the folder of results."""
        return "/".join((self.data.output_base, *parts))

    # ------------------------------------------------------------------ data

    def source(self, dataset: str, split: str) -> dict[str, Any]:
        """The options of a dataset that determine the source of one split; ConfigError for a split that it lacks.

        URLs are hidden (`http_download.hide_urls`), as they may contain a token.
        """
        check_split(open_format(dataset, self.datasets[dataset]), split)
        return hide_urls(options_for_split(dataset, self.datasets[dataset], split))

    def secret_urls(self) -> dict[str, str]:
        """The URLs that `source` replaces by keys, of all datasets and by key."""
        return secret_urls(self.datasets)

    def own_annotations(self, dataset: str, split: str) -> str | None:
        """SHA-256 of the annotations in the user's own folder, so that params change with it; otherwise None."""
        manifest = Path(self.data.raw_root, dataset, f"{split}.source.json")
        return local_annotations_sha256(dataset, self.datasets[dataset], split, manifest)

    def conversion(self, run: str, split: str) -> dict[str, Any]:
        """Options of the conversion of one split.

        Images without objects are always kept for evaluation: a detection in such an image is a false positive, which
        an evaluation without the image would not count.
        """
        data = msgspec.to_builtins(self.run(run).data)
        options = {name: data[name] for name in ConvertOptions.__struct_fields__ if name != "num_workers"}
        return {**options, "keep_empty": options["keep_empty"] or split != self.split(run, "train")}

    def split(self, run: str, name: str) -> str:
        """The split that a role or a name means in a run: `val`, `test-dev`, `val_tiny`."""
        return self.run(run).data.roles.split(name)

    def evaluated_split(self, run: str) -> str:
        """The split that a run is evaluated on, of which only the tiny part may be predicted."""
        return self.split(run, self.run(run).predict.split).removesuffix("_tiny")

    def records(self, run: str, name: str) -> str:
        """Path of a records file that a run reads, by its name without the ending: `val`, `train_rest.coord`."""
        own = self.run(run)
        folder = own.calibration_split if re.match("calibration|train_rest", name) else own.records
        return self.results(folder, "data", f"{name}.jsonl")

    def trained_on(self, run: str, split: str) -> str:
        """Path of the records that training reads: the recipe's own file, or the run's in the recipe's space.

        Images of the calibration split are left out of the training split. ConfigError when the tokens of the run's
        records were made with another codec than the recipe's.
        """
        settings, custom = self.run(run), self.recipe(run).custom
        own = {"train": custom.train_jsonl, "val": custom.val_jsonl}[split]
        if own:
            return own
        codec = self.recipe(settings.records).custom.emit_norm
        if custom.coord_tokens.skip_bbox_norm and custom.emit_norm != codec:
            fix = "set custom.coord_tokens.skip_bbox_norm: false, to quantise in training instead"
            problem = f"the tokens of {settings.records} were quantised with a different codec"
            field = f"runs.{run}.recipe.custom.emit_norm"
            raise ConfigError(located(problem, field=field, expected=codec, found=custom.emit_norm, fix=fix))
        rest = split == "train" and settings.calibrate.images
        name = "train_rest" if rest else self.split(run, "train" if split == "train" else "val_tiny")
        return self.records(run, f"{name}.coord" if custom.coord_tokens.skip_bbox_norm else name)

    def mixture(self, run: str, *, tables: bool = True) -> list[str]:
        """Files of the mixture that a run trains on: the mixture, records, tables of categories; none without one."""
        config = self.recipe(run).custom.fusion_config
        if config is None:
            return []
        path = self.root / config
        named = [*mixture_files(path), *(mixture_files(path, "categories") if tables else [])]
        return [os.path.relpath(file) for file in (path, *named)]

    def images(self, *records: str) -> list[str]:
        """Manifests of the images that files of records of the workflow refer to.

        Records may stay the same when their images change, so a rule that reads the images depends on both.
        """
        found = [owner for path in records if (owner := self.records_owner(path))]
        return list(dict.fromkeys(self.results(run, "data", f"{split}.images.json") for _, run, split in found))

    def records_owner(self, path: str) -> tuple[str, str, str] | None:
        """(run, run whose records it reads, split) of a records file of the workflow; None for any other file.

        The records are the run's own for a folder that the user made, or of a run that is no longer configured.
        """
        base = re.escape(os.path.relpath(self.data.output_base))
        parts = rf"(calibration|train_rest|{SPLIT})(_tiny)?(\.coord)?\.jsonl"
        match = re.fullmatch(rf"{base}/({runs.PATTERN})/data/{parts}", os.path.relpath(path))
        if match is None:
            return None
        run, name = match[1], match[2]
        try:
            settings = self.run(run)
            records, roles = settings.records, settings.data.roles
            splits = known_splits(open_format(settings.dataset, self.datasets[settings.dataset]))
        except ConfigError:
            records, roles, splits = run, Roles(), ["train", "val"]
        if name in ("calibration", "train_rest"):
            return run, records, roles.train
        split = next((s for s in sorted(splits, key=len)[::-1] if name == s or name.startswith(f"{s}_")), None)
        return (run, records, split) if split else None

    # ------------------------------------------------------------------ models

    def own_base(self, model: str) -> dict[str, str] | None:
        """Digests of the files of a base in the user's own folder, so that params change with it; None for other bases.

        A missing folder is represented by what was fetched from it, and a damaged one by None, as the rule reports it.
        """
        entry = self.runs.model(model)
        if entry["source"] != "path":
            return None
        folder, fetched = Path(entry["path"]), Path(self.data.raw_root, "models", model)
        try:
            return (
                checkpoint_files.checkpoint_identity(folder)
                if folder.is_dir()
                else checkpoint_files.recorded_identity(fetched)
            )
        except CoordExpError:
            return None

    def fetched(self, model: str) -> str:
        """Folder of a base before coordinate tokens are added to it."""
        entry = self.runs.model(model)
        return self.merged(entry["run"]) if entry["source"] == "run" else f"{self.data.raw_root}/models/{model}"

    def base(self, run: str) -> str:
        """Folder of the base that a run starts from; ConfigError for coordinate tokens that it does not have."""
        settings = self.run(run)
        if settings.vocab.init == "none":
            if self.recipe(run).custom.coord_tokens.enabled:
                fix = "set custom.coord_tokens.enabled: false, or another vocab.init"
                problem = "the base has no coordinate tokens, which the recipe needs"
                raise ConfigError(located(problem, field=f"runs.{run}.vocab.init", found="none", fix=fix))
            return self.fetched(settings.model)
        suffix = "" if settings.vocab.init == self.vocab.init else f"-{settings.vocab.init}"
        return self.results("models", f"{settings.model}-coordexp{suffix}")

    def merged(self, run: str) -> str:
        """Folder of the merged checkpoint that a run is evaluated with."""
        return self.results(self.run(run).checkpoint, "merged")

    def training(self, run: str) -> str:
        """Folder of the training run whose checkpoint a run uses."""
        return self.results(self.run(run).checkpoint, "train")

    def size(self, run: str, *, small: int, large: int) -> int:
        """A resource by the run's base: `small` for a small model, `large` for any other."""
        return small if self.runs.is_small(run) else large

    # ------------------------------------------------------------------ recipes and predictions

    def recipe(self, run: str) -> Recipe:
        """The recipe that a run trains with, resolved."""
        if run not in self._recipes:
            recipe = self.run(run).recipe
            source = recipe["extends"] if set(recipe) == {"extends"} and isinstance(recipe["extends"], str) else recipe
            self._recipes[run] = load_recipe(source, root=self.root, name=f"runs.{run}.recipe")
        return self._recipes[run]

    def recipe_map(self, run: str) -> dict[str, Any]:
        """The same as plain values, for params."""
        return msgspec.to_builtins(self.recipe(run))

    def prediction(self, run: str) -> dict[str, Any]:
        """Options, prompt style and codec of a run's predictions, for params.

        The temperature of the loss and the geometry of the records are used where these options are null. ConfigError
        for options that answers in this style do not support.
        """
        settings, custom = self.run(run), self.recipe(self.run(run).checkpoint).custom
        given = msgspec.to_builtins(settings.predict)
        trained = {
            "temperature": custom.loss.temperature,
            "geometry": ["bbox_2d"] if settings.data.geometry == "bbox" else ["bbox_2d", "poly"],
            "poly_max_points": settings.data.poly_max_points,
        }
        options = given | {key: value for key, value in trained.items() if given[key] is None}
        options = {key: options[key] for key in PredictOptions.__struct_fields__ if key not in ("split", "shards")}
        check_options(msgspec.convert(options, PredictOptions), custom.style, f"runs.{run}.predict")
        return {"options": options, "style": msgspec.to_builtins(custom.style), "emit_norm": custom.emit_norm}

    def evaluation(self, run: str) -> dict[str, Any]:
        """Options of a run's evaluation, for params."""
        settings = self.run(run)
        options = msgspec.to_builtins(settings.evaluate)
        return {**options, "on_bad": options["on_bad"] or settings.data.on_bad}


def over_defaults(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """`config` over the defaults of the repository, for a workflow that uses this one as a module."""
    return merge(yaml.safe_load((root / DEFAULTS).read_text(encoding="utf-8")), config)
