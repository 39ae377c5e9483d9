"""The workflow's configuration: schema, nearest names for typos, and the look-ups that rules need."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import yaml

from coordexp.config import runs
from coordexp.config.runs import Run
from coordexp.datasets import mixture as fusion
from coordexp.datasets.download import local_annotations_sha256, options_for_split
from coordexp.modeling import checkpoint_files as contents
from coordexp.recipe import Recipe, load_recipe
from coordexp.runtime.config_io import merge
from coordexp.runtime.errors import ConfigError, CoordExpError, located, nearest

SCHEMA = Path("config/schemas/config.schema.yaml")
DEFAULTS = Path("config/config.yaml")


class Settings:
    """Validated configuration with the look-ups that rules need."""

    def __init__(self, config: Mapping[str, Any], root: Path):
        self.root = root
        self.config = config
        self.data = config["data"]
        self._recipes: dict[str, Recipe] = {}

    @classmethod
    def load(cls, config: Mapping[str, Any], root: Path) -> Settings:
        """Check `config` against the schema; values given as text on the command line get their types."""
        schema = yaml.safe_load((root / SCHEMA).read_text(encoding="utf-8"))
        checked = coerce(copy.deepcopy(dict(config)), schema, schema)
        validate(checked, schema)
        if checked["calibrate"]["method"] != "none" and not checked["calibrate"]["calibration"]:
            fix = "set it to some hundred images; they are kept from training, so that the scores are learnt honestly"
            raise ConfigError(located("nothing to calibrate on", field="calibrate.calibration", found=0, fix=fix))
        runs.check(checked)
        return cls(checked, root)

    @property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """The data sets of the `data` section by name."""
        return runs.datasets(self.config)

    def knobs(self, *names: str) -> dict[str, Any]:
        """Shared knobs of the `data` section."""
        return {name: self.data[name] for name in names}

    def conversion(self, split: str, *names: str) -> dict[str, Any]:
        """Knobs of a split's conversion. Images without objects are left out of training alone: what is found in
        such a image is wrong, and an evaluation without it would not count that."""
        knobs = self.knobs(*names)
        return knobs | {"keep_empty": knobs["keep_empty"] or split != "train"}

    def run(self, name: str) -> Run:
        """Meaning of a run's name; ConfigError for an unknown run, or one without model and recipe."""
        return runs.resolve(self.config, name)

    def records(self, run: str, name: str) -> str:
        """A file of the records that a run reads, by its name without the ending: `val`, `train_rest.coord`."""
        return f"{self.data['output_base']}/{self.run(run).data}/data/{name}.jsonl"

    def recipe(self, run: str) -> Recipe:
        """The resolved recipe of a run, with the run's own overrides on top."""
        if run not in self._recipes:
            entry = self.run(run)
            self._recipes[run] = load_recipe(self.root / entry.recipe, entry.overrides)
        return self._recipes[run]

    def source(self, dataset: str, split: str) -> dict[str, Any]:
        """What providing one split of a data set reads of its entry."""
        return options_for_split(dataset, self.datasets[dataset], split)

    def own_annotations(self, dataset: str, split: str) -> str | None:
        """Content of the annotations of a split in the user's own folder, so that params see it change."""
        manifest = Path(self.data["raw_root"], dataset, f"{split}.source.json")
        return local_annotations_sha256(dataset, self.datasets[dataset], split, manifest)

    def own_base(self, model: str) -> dict[str, str] | None:
        """Content of the user's own folder of a base by file, so that params see it change; None for other bases.

        What was fetched stands for a folder that is gone, and None for a damaged one, which the rule explains.
        """
        entry = self.config["models"][model]
        if entry["source"] != "path":
            return None
        folder = Path(entry.get("path") or "")
        fetched = Path(self.data["raw_root"], "models", model)
        try:
            return contents.digests(folder) if folder.is_dir() else contents.recorded(fetched)
        except CoordExpError:
            return None

    def trained_on(self, run: str, split: str, recipe: Recipe | None = None) -> str:
        """Records that training reads: the recipe's own file, or the run's in the space that the recipe wants.

        `recipe` is that of an arm; default: the run's. Of the training split only those that are not held out.
        ConfigError when those have the tokens of another codec.
        """
        custom = (recipe or self.recipe(run)).custom
        own = {"train": custom.train_jsonl, "val": custom.val_jsonl}[split]
        made = self.recipe(self.run(run).data).custom.emit_norm
        if own is None and custom.coord_tokens.skip_bbox_norm and custom.emit_norm != made:
            fix = "quantise in training instead, with custom.coord_tokens.skip_bbox_norm: false"
            problem = f"the tokens of {self.run(run).data} are of another codec"
            raise ConfigError(
                located(problem, field=f"{run}: custom.emit_norm", expected=made, found=custom.emit_norm, fix=fix)
            )
        rest = "train_rest" if self.config["calibrate"]["calibration"] else "train"
        space = ".coord" if custom.coord_tokens.skip_bbox_norm else ""
        name = {"train": rest, "val": "val_tiny"}[split]
        return own or self.records(run, f"{name}{space}")

    def mixture(self, run: str, *, tables: bool = True) -> list[str]:
        """The mixture of a run's recipe and the files that it names, those of categories last; empty for one source."""
        config = self.recipe(run).custom.fusion_config
        if config is None:
            return []
        path = self.root / config
        named = [*fusion.files(path), *(fusion.files(path, "categories") if tables else [])]
        return [os.path.relpath(file) for file in (path, *named)]

    def images(self, *records: str) -> list[str]:
        """For files of records that the workflow makes: the files that say by what their images were made.

        Records may be the same after a change that made other images, so who looks at these reads both.
        """
        base = self.data["output_base"]
        made = re.compile(rf"{re.escape(os.path.relpath(base))}/({runs.PATTERN})/data/(train|calibration|val)[_.][^/]*")
        found = filter(None, (made.fullmatch(os.path.relpath(path)) for path in records))
        return list(
            dict.fromkeys(f"{base}/{m[1]}/data/{'val' if m[2] == 'val' else 'train'}.images.json" for m in found)
        )

    def recipe_map(self, run: str) -> dict[str, Any]:
        """The resolved recipe as plain values, for params."""
        return msgspec.to_builtins(self.recipe(run))

    def answering(self, recipe: Recipe, **own: Any) -> dict[str, Any]:
        """How a model trained by `recipe` is asked and read, for params; `own` options win over the `predict` section.

        The temperature is the one that it trained with and the geometry what its records carry, unless the
        configuration gives another.
        """
        section = {key: value for key, value in self.config["predict"].items() if key not in ("images", "shards")}
        custom = recipe.custom
        learnt = {
            "temperature": custom.loss.temperature,
            "geometry": ["bbox_2d"] if self.data["geometry"] == "bbox" else ["bbox_2d", "poly"],
            "poly_max_points": self.data["poly_max_points"],
        }
        options = {**learnt, **section, **own}
        return {"options": options, "style": msgspec.to_builtins(custom.style), "emit_norm": custom.emit_norm}

    def size(self, run: str, *, small: int, large: int) -> int:
        """A resource by the run's base: `small` for a tiny model, `large` for a real one."""
        return small if self.config["models"][self.run(run).model]["source"] == "tiny" else large


def over_defaults(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """`config` over the repository's own defaults: a workflow that uses this one as a module names only its changes."""
    return merge(yaml.safe_load((root / DEFAULTS).read_text(encoding="utf-8")), config)


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """ConfigError listing every problem with the key's path, and the nearest name for an unknown key."""
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(config), key=lambda e: list(map(str, e.path)))
    problems = [_explain(error, schema) for error in errors]
    if problems:
        raise ConfigError("\n".join(problems) + "\n  -> config/config.yaml lists every key with its meaning")


def coerce(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Text from `--config key=value` as the type that the schema asks for; anything else unchanged."""
    schema = _resolve(schema, root)
    if isinstance(value, Mapping):
        return {key: coerce(inner, _property(schema, key), root) for key, inner in value.items()}
    if isinstance(value, list):
        return [coerce(inner, schema.get("items", {}), root) for inner in value]
    if not isinstance(value, str):
        return value
    kinds = schema.get("type", [])
    return _from_text(value, [kinds] if isinstance(kinds, str) else kinds)


def _from_text(value: str, kinds: list[str]) -> Any:
    words = {
        "null": {"null": None, "None": None},
        "boolean": {"true": True, "True": True, "false": False, "False": False},
    }
    for kind in kinds:
        if value in words.get(kind, {}):
            return words[kind][value]
        if kind in ("integer", "number"):
            try:
                return int(value) if kind == "integer" else float(value)
            except ValueError:
                continue
    return value


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
    return inner if isinstance(inner, Mapping) else {}


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    return schema


def _explain(error: jsonschema.ValidationError, schema: Mapping[str, Any]) -> str:
    path = ".".join(map(str, error.absolute_path)) or "config"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        unknown = [key for key in error.instance if key not in known]
        if error.validator_value is False:
            return "; ".join(
                f"{path}.{key}: unknown key{nearest(key, known)}".removeprefix("config.") for key in unknown
            )
    section, *rest = [*error.absolute_path, None]
    if section == "data" and error.validator == "type" and len(rest) == 2:
        known = schema["properties"]["data"]["properties"]
        if rest[0] not in known:
            return f"{path}: unknown key{nearest(str(rest[0]), known)}"
    return located(error.message, field=path)
