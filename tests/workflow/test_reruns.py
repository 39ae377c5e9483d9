"""What reruns: every key and module against the table of the documentation, and the table against real dry runs."""

import importlib.util
import os
import re
import shutil
from fnmatch import fnmatchcase

import pytest
import yaml
from running import REPOSITORY, Workflow

from coordexp.modeling import tiny
from coordexp.runtime.config_io import merge

spec = importlib.util.spec_from_file_location("make_reruns", REPOSITORY / "docs" / "make_reruns.py")
reruns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reruns)

TARGETS = ("results/shapes_9/eval.json", "results/shapes_9/report.html", "results/shapes_9/data/complete")
SOURCES = ("Snakefile", "rules", "workflow_scripts", "src", "config", "envs", "profiles", "README.md")


@pytest.fixture(scope="module")
def base():
    return reruns.plan({})


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """Every key with a change of it, planned once: key -> (change, plan)."""
    found = dict(reruns.keys(tmp_path_factory.mktemp("recipes")))
    return {key: (change, reruns.plan(change, reruns.targets(key))) for key, change in found.items()}


def test_every_key_reruns_what_the_table_says(base, changes):
    bases = {reruns.NAMED: reruns.plan({}, reruns.NAMED), reruns.TARGETS: base}
    found = {key: reruns.rules(reruns.first(bases[reruns.targets(key)], plan)) for key, (_, plan) in changes.items()}
    assert [key for key in found if reruns.expected_first(key) is None] == [], "add them to docs/reruns.yaml"
    assert found == {key: sorted(reruns.expected_first(key)) for key in found}
    assert len(found) > 150


def test_every_pattern_of_the_table_matches_a_key_or_module(changes):
    assert [p for p in reruns.expected()["keys"] if not any(fnmatchcase(key, p) for key in changes)] == []
    assert [p for p in reruns.expected()["modules"] if not any(fnmatchcase(m, p) for m in reruns.modules())] == []


def test_a_key_of_one_data_set_leaves_the_runs_of_others_alone(base, changes):
    for key, (change, plan) in changes.items():
        if not re.match(r"recipe|runs|datasets", key) or key.removeprefix("runs.{run}.") in reruns.OF_PARENT:
            continue
        other = "lvis" if "shapes" in next(iter(change.values())) else "shapes"
        moved = reruns.downstream(plan, reruns.first(base, plan))
        assert [job for job in moved if any(other in file for file in job[1:])] == [], key


@pytest.mark.parametrize(
    ("key", "untouched"),
    [
        ("datasets.{dataset}.splits", "train"),
        ("datasets.{dataset}.annotations", "train"),
        ("datasets.{dataset}.downloads", "train"),
    ],
)
def test_a_key_of_one_split_leaves_the_source_of_the_other_alone(base, changes, key, untouched):
    first = reruns.first(base, changes[key][1])
    assert first and not any(f"/{untouched}.source.json" in job[1] for job in first)


def test_the_order_of_keys_does_not_count(base):
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    backwards = yaml.safe_load(yaml.safe_dump(config))  # without shared maps
    for section in filter(None, backwards.values()):
        for name, value in reversed(list(section.items())):
            section[name] = section.pop(name)
            if isinstance(value, dict):
                section[name] = dict(reversed(value.items()))
    assert reruns.plan(backwards) == base


def test_a_file_of_the_user_s_own_reruns_what_the_table_says(tmp_path):
    base, annotations = tiny.build(tmp_path / "base", seed=7), tmp_path / "annotations"
    annotations.mkdir()
    for split in ("train", "val"):
        (annotations / f"lvis_v1_{split}.json").write_text("{}")
    own = {
        "datasets": {"lvis": {"root": str(tmp_path)}},
        "models": {"ours": {"source": "path", "path": str(base)}},
        "runs": {"lvis": {"model": "ours"}},
    }
    plans = [reruns.plan(own)]
    found = {}
    for key, file in (
        ("datasets.{dataset}.root", annotations / "lvis_v1_val.json"),
        ("models.{model}.path", base / "config.json"),
    ):
        file.write_text(file.read_text() + "\n")
        plans.append(reruns.plan(own))
        found[key] = reruns.rules(reruns.first(*plans[-2:]))
    assert found == reruns.expected()["files"]


def test_a_module_reruns_no_more_than_the_table_says(base):
    table = reruns.expected()["modules"]
    for module, first in reruns.first_users(base).items():
        if module.startswith("workflow_scripts"):
            assert set(first) <= {module.split(".")[-1]} or module.split(".")[1:] in ([], ["arguments"]), module
            continue
        fitting = [pattern for pattern in table if fnmatchcase(module, pattern)]
        assert fitting and set(first) <= set(
            table[max(fitting, key=lambda pattern: (pattern == module, len(pattern)))]
        ), (module, first)


def test_the_hash_of_a_rule_holds_every_module_that_its_process_imports(base, finished):
    """`finished` ran with PYTHONPROFILEIMPORTTIME, so each log lists the imports, also those of child processes."""
    for rule in reruns.stages(base):
        logs = [*finished.path("results").glob(f"*/logs/{rule}.*"), *finished.path(f"results/logs/{rule}").glob("*")]
        if not (REPOSITORY / "workflow_scripts" / f"{rule}.py").exists():
            continue  # a target
        lines = "".join(log.read_text() for log in logs)
        imported = set(re.findall(r"\| +((?:coordexp|workflow_scripts)[\w.]*)$", lines, flags=re.MULTILINE))
        counted = {
            module for module in imported if not re.match(r"coordexp\.runtime|workflow_scripts\.arguments", module)
        }
        assert len(imported) > 3 and counted <= reruns.code_of(rule), rule


@pytest.fixture
def clone(finished, tmp_path):
    """A copy of the sources and of everything that the small demo wrote."""
    for name in SOURCES:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    folder = tmp_path / "work"
    shutil.copytree(finished.folder, folder)
    return Workflow(folder, finished.changes, tmp_path)


@pytest.mark.parametrize(
    "key",
    ["data.crowd", "data.num_workers", "predict.shards", "evaluate.max_dets.coco", "recipe.custom.loss.weights.giou"],
)
def test_real_dry_runs_agree_with_the_plans(finished, changes, key):
    change, before = changes[key][0], finished.changes
    targets = tuple(target.removeprefix("results/") for target in TARGETS)
    plans = [reruns.plan(merge(before, extra), targets) for extra in ({}, change)]
    expected = reruns.downstream(plans[1], reruns.first(*plans))
    try:
        finished.change(merge(before, change))
        assert set(finished.planned(*TARGETS[:2])) == set(reruns.rules(expected)) - {"data"}
    finally:
        finished.change(before)


@pytest.mark.parametrize(
    "module",
    [
        *("geometry.boxes", "reporting.report", "inference.decoder", "losses.terms", "evaluation.average_precision"),
        *("cli.detect", "inference.import_responses", "runtime.io"),
    ],
)
def test_an_edited_module_reruns_its_users_in_a_real_dry_run(clone, base, module):
    source = clone.repository / "src/coordexp" / f"{module.replace('.', '/')}.py"
    source.write_text(source.read_text() + "\nUNUSED = 1\n")
    users = set(reruns.users(reruns.stages(base))[f"coordexp.{module}"])
    plan = reruns.keeping_training(base)
    names = {name for name in plan if name[0] in users}
    assert set(clone.planned(*TARGETS[:2])) == set(reruns.rules(reruns.downstream(plan, names)))


@pytest.mark.parametrize(
    ("change", "module", "target", "follow"),
    [
        ({"data": {"jpeg_quality": 60}}, None, "shapes_9/data/complete", {"train", "merge", "predict", "report"}),
        ({}, "modeling/embedding_init.py", "models/tiny-coordexp/config.json", {"merge", "predict"}),
        ({}, "modeling/merge_plan.py", "shapes_9/merged/config.json", {"predict", "gather"}),
    ],
)
def test_a_change_outlasts_a_stage_that_ran_alone(clone, change, module, target, follow):
    """Images and weights are not declared as outputs, and the declared outputs may be unchanged."""
    clone.change(merge(clone.changes, change))
    if module:
        source = clone.repository / "src/coordexp" / module
        source.write_text(source.read_text() + "\nUNUSED = 1\n")
    clone.run(f"results/{target}")
    planned = set(clone.planned(*TARGETS[:2]))
    assert follow <= planned and not planned & {"convert_resize", "expand_vocab"}


def test_touches_comments_and_cores_rerun_nothing(clone):
    for file in clone.repository.rglob("*"):
        if file.suffix in (".py", ".smk", ".yaml", ".md") and "work" not in file.relative_to(clone.repository).parts:
            file.write_text(file.read_text() + "\n# a comment\n")
    module = clone.repository / "src/coordexp/inference/decoder.py"
    module.write_text(module.read_text().replace('"""', '"""Reworded: ', 1))
    assert clone.planned(*TARGETS[:2], options=("--cores", "1")) == {}


def test_nothing_reruns_in_a_fresh_clone_with_the_results_copied_in(clone):
    """All modification times are new, and the first outputs are the newest."""
    files = [path for path in clone.folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for age, path in enumerate(files):
        os.utime(path, (1.7e9 + 10 * age,) * 2)
    assert clone.planned(*TARGETS[:2]) == {}


def test_every_profile_compares_files_by_content_whatever_their_size():
    for profile in sorted((REPOSITORY / "profiles").glob("*/profile.yaml")):
        assert yaml.safe_load(profile.read_text())["max-checksum-file-size"] >= 10**12, profile


def test_the_committed_page_is_up_to_date():
    assert reruns.PAGE.read_text() == reruns.page(), "run: python docs/make_reruns.py"


def test_only_the_last_stages_of_a_run_have_nothing_downstream():
    """Also for rules without a job in the default plan, such as `convert_shard`."""
    rows = re.findall(r"^\| `[^|]*` \| [^|]* \| (`[^|]*`) \| *\|$", reruns.PAGE.read_text(), flags=re.MULTILINE)
    assert set(rows) == {"`data`", "`report`"}
