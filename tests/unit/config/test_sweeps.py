"""Sweeps: the combinations that are run, their names, seeds, and which of them share a training."""

import msgspec
import pytest

from coordexp.config.sweeps import Sweep, baseline, inline_recipe, seeded, trial_of, trials
from coordexp.runtime.errors import ConfigError

OBJECTIVES = {"text": {"recipe": "config/ablation/text.yaml"}, "tokens": {"recipe": "config/ablation/tokens.yaml"}}


def sweep(**changes) -> Sweep:
    fields = {"run": "shapes_9", "axes": {"objective": OBJECTIVES, "predict.decode": ["argmax", "local"]}}
    return msgspec.convert({**fields, **changes}, Sweep)


def test_every_combination_is_a_run_per_seed():
    names = [trial.run for trial in trials("ablation", sweep(seeds=[1, 2]))]
    assert names == [
        f"sweeps/ablation/{objective}_{decode}-seed{seed}"
        for objective in ("text", "tokens")
        for decode in ("argmax", "local")
        for seed in (1, 2)
    ]


def test_a_dotted_axis_changes_one_key_of_the_run():
    found = trials("lr", sweep(axes={"recipe.training.learning_rate": [1e-3, 0.002]}))
    assert [trial.variant for trial in found] == ["0.001", "0.002"]
    assert found[1].overrides == {"recipe": {"training": {"learning_rate": 0.002}}}


def test_named_overrides_of_several_axes_are_merged():
    axes = {"objective": OBJECTIVES, "rate": {"slow": {"recipe": {"training": {"learning_rate": 1e-4}}}}}
    assert trials("a", sweep(axes=axes))[1].overrides == {
        "recipe": {"extends": "config/ablation/tokens.yaml", "training": {"learning_rate": 1e-4}}
    }


def test_excluded_combinations_are_left_out():
    found = trials("a", sweep(exclude=[{"objective": "text", "predict.decode": ["local"]}]))
    assert [trial.variant for trial in found] == ["text_argmax", "tokens_argmax", "tokens_local"]


def test_variants_that_differ_after_training_share_it():
    chosen = sweep(seeds=[1, 2])
    listed = {"a": trials("a", chosen)}
    trial, trained = trial_of("sweeps/a/tokens_local-seed2", listed)
    assert trial.run == "sweeps/a/tokens_local-seed2"
    assert trained.run == "sweeps/a/tokens_argmax-seed2"
    assert trial_of(trained.run, listed)[1] == trained


def test_another_number_of_calibration_images_is_another_training():
    axes = {"calibrate.images": [0, 50], "calibrate.method": ["none", "isotonic"]}
    assert len({trial.training for trial in trials("a", sweep(axes=axes))}) == 2


def test_the_baseline_is_the_first_variant_unless_named():
    assert baseline("a", sweep()) == "text_argmax"
    assert baseline("a", sweep(baseline={"objective": "tokens"})) == "tokens_argmax"


def test_a_seed_reaches_every_key_that_takes_one():
    recipe = seeded({"recipe": {"extends": "x.yaml", "training": {"max_steps": 3}}}, 5)["recipe"]
    assert recipe == {
        "extends": "x.yaml",
        "training": {"max_steps": 3, "seed": 5, "data_seed": 5},
        "custom": {"sample_seed": 5},
    }


def test_a_recipe_path_can_be_merged_with_overrides():
    assert inline_recipe({"recipe": "a.yaml", "model": "tiny"}) == {"recipe": {"extends": "a.yaml"}, "model": "tiny"}
    assert inline_recipe({"model": "tiny"}) == {"model": "tiny"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"objective": {}}}, "sweeps.a.axes.objective: the axis has no values"),
        ({"axes": {"x": {"a/b": {}}}}, "invalid value name"),
        ({"axes": {"data.seed": [1, 1.0]}}, "two values have the same name"),
        ({"exclude": [{"objectiv": "text"}]}, "unknown axis 'objectiv', did you mean 'objective'"),
        ({"baseline": {"objective": "token"}}, "unknown value 'token', did you mean 'tokens'"),
        ({"exclude": [{"objective": ["text", "tokens"]}]}, "every combination is excluded"),
        ({"exclude": [{"objective": "text"}], "baseline": {"objective": "text"}}, "no trial has these values"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        baseline("a", sweep(**changes))


def test_unknown_sweeps_and_trials_are_named():
    with pytest.raises(ConfigError, match="unknown sweep 'b'"):
        trial_of("sweeps/b/x-seed1", {"a": trials("a", sweep())})
    with pytest.raises(ConfigError, match="unknown trial, did you mean 'sweeps/a/text_argmax-seed1'"):
        trial_of("sweeps/a/text_argmax-seed9", {"a": trials("a", sweep())})
