"""Names that cannot be part of a path, or that YAML does not read as text, are refused with the reason."""

from pathlib import Path

import pytest
import yaml

from coordexp.config.names import check_names
from coordexp.config.settings import Settings, over_defaults
from coordexp.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
NOT_TEXT = "not as text"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no", NOT_TEXT),
        ("2024", NOT_TEXT),
        ("1_000", NOT_TEXT),
        ("1e3", None),
        ("2024-01-02", NOT_TEXT),
        ("null", NOT_TEXT),
        ('"off"', NOT_TEXT),
        ("a b", "letters, digits"),
        ("a/b", "letters, digits"),
        ("'*'", "letters, digits"),
        ("ä", "letters, digits"),
        ("a+b", "letters, digits"),
        ("coco-2017", None),
    ],
)
@pytest.mark.parametrize("section", ["datasets", "models", "sweeps"])
def test_names(section, name, reason):
    config = yaml.safe_load(f"{section}: {{{name}: {{}}}}")
    if reason is None:
        check_names(config)
        return
    with pytest.raises(ConfigError, match=reason) as caught:
        check_names(config)
    assert str(caught.value).startswith(section)


def load(changes):
    return Settings.load(over_defaults(changes, ROOT), ROOT)


def test_the_configuration_is_refused_before_its_entries_are_read():
    with pytest.raises(ConfigError, match=r"datasets: invalid name: YAML .*; found 2024\n  -> .* dataset_2024"):
        load({"datasets": {2024: {"format": "coco"}}})


@pytest.mark.parametrize("run", ["shapes_3", "own"])
def test_a_budget_below_the_minimum_names_both_keys(run):
    changes = {"data": {"min_blocks": 4}, "runs": {"own": {"extends": "shapes_9", "max_blocks": 3}}}
    with pytest.raises(
        ConfigError, match=f"runs.{run}.max_blocks: is smaller than data.min_blocks, which is 4; found 3"
    ):
        load(changes if run == "own" else {"data": {"min_blocks": 4}}).run(run)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"evaluate": {"score_threshold": float("nan")}}, "evaluate"),
        ({"data": {"poly_min_iou": float("inf")}}, "data.poly_min_iou"),
        ({"predict": {"temperature": float("nan")}}, "predict.temperature"),
        ({"runs": {"shapes": {"recipe": {"training": {"learning_rate": float("inf")}}}}}, "learning_rate"),
        ({"datasets": {"shapes": {"format": "shapes", "size": [0.5, 0.2]}}}, "datasets.shapes"),
    ],
)
def test_numbers_of_the_configuration_are_finite_and_ranges_in_order(changes, key):
    with pytest.raises(ConfigError) as caught:
        load(changes)
    assert key in str(caught.value)


@pytest.mark.parametrize(("size", "gpus"), [(10, 0), (600_000_000, 1), (None, 1)])
def test_resources_follow_the_size_of_the_users_own_checkpoint(tmp_path, size, gpus):
    if size is not None:
        with (tmp_path / "model.safetensors").open("wb") as weights:
            weights.truncate(size)
    changes = {"models": {"own": {"source": "path", "path": str(tmp_path)}}, "runs": {"shapes": {"model": "own"}}}
    assert load(changes).size("shapes_9", small=0, large=1) == gpus
