"""The catalogue of public base models: every entry is valid and pinned; tiny models of the model families."""

import re
from pathlib import Path

import yaml

from coordexp.config.settings import Settings, over_defaults
from coordexp.modeling.families import DEFAULT_FAMILY, FAMILIES
from coordexp.publishing.publish import licence_of

REPOSITORY = Path(__file__).resolve().parents[3]
CATALOGUE = yaml.safe_load((REPOSITORY / "config/models/public.yaml").read_text())


def test_every_entry_is_a_pinned_checkpoint_that_a_run_can_name():
    runs = {"lvis_big": {"records_from": "lvis_768", "model": "Qwen3-VL-8B-Instruct"}}
    settings = Settings.load(over_defaults({**CATALOGUE, "runs": runs}, REPOSITORY), REPOSITORY)
    assert settings.run("lvis_big").model == "Qwen3-VL-8B-Instruct"
    for name, entry in CATALOGUE["models"].items():
        assert entry["repo"] == f"Qwen/{name}" and re.fullmatch("[0-9a-f]{40}", entry["revision"])
        assert licence_of(entry) == "apache-2.0"


def test_the_default_model_is_the_same_in_both_files():
    defaults = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())["models"]
    name = "Qwen3-VL-4B-Instruct"
    assert CATALOGUE["models"][name] == defaults[name]


def test_every_family_has_a_run_with_a_tiny_model():
    tiny = yaml.safe_load((REPOSITORY / "config/models/tiny_families.yaml").read_text())
    settings = Settings.load(over_defaults(tiny, REPOSITORY), REPOSITORY)
    for family in FAMILIES.names():
        run = settings.run(f"shapes_{family}")
        entry = settings.runs.model(run.model)
        assert (entry["source"], entry.get("family", DEFAULT_FAMILY)) == ("tiny", family)
        assert run.records == "shapes_9"
