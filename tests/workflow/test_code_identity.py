"""What changed code reruns: nothing for texts and infrastructure, no finished training, every other stage that uses it.

Real dry runs on a copy of the repository with the finished small demo in it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import REPOSITORY, Workflow

from coordexp.runtime.config_io import merge

TARGETS = ("results/shapes_9/eval.json", "results/shapes_9/report.html")
SOURCES = ("Snakefile", "rules", "workflow_scripts", "src", "config", "envs", "profiles", "README.md")
REPORTED = "shapes_9: trained with a different version of the code"
STRICT = {"train": {"rerun_on_code_change": True}}
AFTER_TRAINING = {"curves", "merge", "predict", "gather", "evaluate", "report"}


@pytest.fixture
def repository(finished, tmp_path) -> Workflow:
    """A copy of the repository with everything that the small demo made."""
    for name in SOURCES:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    shutil.copytree(finished.folder, tmp_path / "work")
    return Workflow(tmp_path / "work", finished.changes, tmp_path)


def edit(repository: Workflow, module: str, pattern: str, replacement: str) -> None:
    """Replace the first match of a regular expression in a module of the copy."""
    file = repository.repository / "src/coordexp" / module
    text, count = re.subn(pattern, replacement, file.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, (module, pattern)
    file.write_text(text)


def change_code(repository: Workflow, module: str) -> None:
    """Add a line of code to a module of the copy."""
    file = repository.repository / "src/coordexp" / module
    file.write_text(file.read_text() + "\nUNUSED = 1\n")


def plan(repository: Workflow, *options: str) -> tuple[set[str], str]:
    """Rules that a dry run would run, and what it prints on stderr."""
    done = repository.run("--dry-run", "--quiet", "host", "reason", *options, "--", *TARGETS)
    rules = set(re.findall(r"^(\w+) +\d+$", done.stdout + done.stderr, flags=re.MULTILINE))
    return rules - {"total"}, done.stderr


@pytest.mark.parametrize(
    ("module", "pattern", "replacement"),
    [
        ("inference/predict.py", r'fix = "', 'fix = "reworded: '),  # an error
        ("modeling/merge.py", r'problem = "', 'problem = "reworded: '),
        ("losses/criterion.py", r'"""', '"""Reworded. '),  # a docstring
        ("datasets/convert.py", r'print\("images: "', 'print("reworded: "'),  # a progress line
        ("runtime/progress.py", r"SECONDS_BETWEEN_LINES = 5\.0", "SECONDS_BETWEEN_LINES = 9.0"),
        ("runtime/tuning.py", r"COPY_BYTES = 2 << 20", "COPY_BYTES = 3 << 20"),  # a buffer size
        ("__init__.py", r'__version__ = "', '__version__ = "9'),
    ],
)
def test_texts_buffer_sizes_and_the_version_rerun_nothing(repository, module, pattern, replacement):
    edit(repository, module, pattern, replacement)
    rules, printed = plan(repository)
    assert rules == set() and REPORTED not in printed


def test_a_changed_loss_is_reported_and_retrains_only_on_request(repository):
    rules, printed = plan(repository)
    assert rules == set() and REPORTED not in printed
    change_code(repository, "losses/criterion.py")
    rules, printed = plan(repository)
    assert rules == set()
    assert REPORTED in printed and "kept" in printed and "rerun_on_code_change: true" in printed
    repository.change(merge(repository.changes, STRICT))
    rules, printed = plan(repository)
    assert rules == {"train", *AFTER_TRAINING}
    assert REPORTED in printed and "retrained because train.rerun_on_code_change is set" in printed


def test_the_strict_option_reruns_nothing_while_the_code_is_the_same(repository):
    repository.change(merge(repository.changes, STRICT))
    rules, printed = plan(repository)
    assert rules == set() and REPORTED not in printed


def test_a_changed_decoder_reruns_prediction_and_what_follows(repository):
    change_code(repository, "inference/decoder.py")
    assert plan(repository)[0] == {"predict", "gather", "evaluate", "report"}


def test_a_changed_conversion_and_merge_rerun_all_but_the_training(repository):
    """In one call: `ancient()` inputs would have hidden the changed merge."""
    change_code(repository, "datasets/convert.py")
    change_code(repository, "modeling/merge_plan.py")
    rules, _ = plan(repository)
    assert {"convert_resize", "merge", "predict", "gather", "evaluate", "report"} <= rules
    assert not rules & {"train", "fetch_model", "expand_vocab"}


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"jpeg_quality": 60}},
        {"runs": {"shapes": {"recipe": {"training": {"learning_rate": 1e-5}}}}},
        {"models": {"tiny": {"seed": 99}}},
        {"datasets": {"shapes": {"splits": {"train": {"seed": 99}}}}},
    ],
)
def test_changed_options_of_any_stage_up_to_training_retrain(repository, change):
    change_code(repository, "evaluation/evaluate.py")
    repository.change(merge(repository.changes, change))
    assert {"train", *AFTER_TRAINING} <= plan(repository)[0]


def test_training_can_be_forced_and_asked_for(repository):
    assert {"train", *AFTER_TRAINING} <= plan(repository, "--forcerun", "train")[0]
    done = repository.run("--dry-run", "--", "results/shapes_9/train/adapter/train_manifest.json")
    assert "Nothing to be done" in done.stdout + done.stderr


CONVERT = """
import sys
from pathlib import Path
from coordexp.datasets import chunk_cache, convert

folder, interrupted = Path(sys.argv[1]), sys.argv[2] == "interrupt"
if interrupted:
    chunk_cache.join_chunks = lambda *_: sys.exit(0)
source = "resources/shapes/train.source.json"
options = convert.ConvertOptions()
convert.convert(source, folder / "train.jsonl", folder / "images/train", options, 9, folder / "stats.json")
"""


def test_finished_chunks_of_a_conversion_outlast_all_but_changed_code(repository):
    def convert(mode: str) -> bool:
        """Convert with the sources of the copy; whether chunks of the run before were used."""
        env = {**os.environ, "PYTHONPATH": str(repository.repository / "src")}
        command = [sys.executable, "-c", CONVERT, str(repository.folder / "converted"), mode]
        done = subprocess.run(command, cwd=repository.folder, env=env, capture_output=True, text=True, check=True)
        assert (Path(repository.folder) / "converted/train.jsonl").exists() == (mode == "finish")
        return "finished earlier" in done.stderr

    assert not convert("interrupt")
    edit(repository, "datasets/convert.py", r'"""', '"""Reworded. ')
    edit(repository, "datasets/images.py", r"\n\n\n", "\n\n\n# A remark.\n\n\n")
    edit(repository, "runtime/tuning.py", r"JOIN_BYTES = 1 << 20", "JOIN_BYTES = 2 << 20")
    edit(repository, "datasets/convert.py", r'fix = "', 'fix = "reworded: ')
    assert convert("interrupt")
    change_code(repository, "geometry/resize.py")
    assert not convert("interrupt")
    assert convert("finish")
