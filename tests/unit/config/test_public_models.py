"""The catalogue of public base models: every entry is valid and pinned."""

import re
from pathlib import Path

import yaml

from coordexp.config.settings import Settings, over_defaults

REPOSITORY = Path(__file__).resolve().parents[3]
CATALOGUE = yaml.safe_load((REPOSITORY / "config/models/public.yaml").read_text())


def test_every_entry_is_a_pinned_checkpoint_that_a_run_can_name():
    runs = {"lvis_big": {"records_from": "lvis_768", "model": "Qwen3-VL-8B-Instruct"}}
    settings = Settings.load(over_defaults({**CATALOGUE, "runs": runs}, REPOSITORY), REPOSITORY)
    assert settings.run("lvis_big").model == "Qwen3-VL-8B-Instruct"
    for name, entry in CATALOGUE["models"].items():
        assert entry["repo"] == f"Qwen/{name}" and re.fullmatch("[0-9a-f]{40}", entry["revision"])


def test_the_default_model_is_the_same_in_both_files():
    defaults = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())["models"]
    name = "Qwen3-VL-4B-Instruct"
    assert CATALOGUE["models"][name] == defaults[name]
