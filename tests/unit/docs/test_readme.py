"""The library's commands in the README run one after another, as they are printed, on tiny data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from coordexp.records import Detection, Prediction, read_records
from coordexp.runtime.io import read_json, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPE = "config/train/sft_coord_offset.yaml"
# All that differs from the printed recipe: two steps on a CPU, two images and short answers in the detection.
SHORT = {
    "extends": str(REPOSITORY / RECIPE),
    "model": {"torch_dtype": "float32"},
    "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "logging_steps": 1},
    "custom": {"detection_eval": {"images": 2, "max_new_tokens": 40}},
}


@pytest.fixture
def folder(shapes_data, tiny_model, tmp_path) -> Path:
    """Every file that the README names, tiny."""
    records = list(read_records(shapes_data / "val.jsonl", "pixel"))
    (tmp_path / "BASE").symlink_to(tiny_model.with_name("base"))
    (tmp_path / "data").symlink_to(shapes_data)
    (tmp_path / "street.jpg").symlink_to(shapes_data / records[0].images[0])
    (tmp_path / "instances_val2017.json").symlink_to(annotations_of(shapes_data))
    (tmp_path / RECIPE).parent.mkdir(parents=True)
    (tmp_path / RECIPE).write_text(yaml.safe_dump(SHORT))
    write_jsonl(tmp_path / "predictions.jsonl", map(ground_truth, records))
    return tmp_path


def annotations_of(data: Path) -> Path:
    return data / "raw" / read_json(data / "raw" / "val.source.json")["annotations"]


def ground_truth(record) -> Prediction:
    """What a model would say that sees everything."""
    found = [Detection(o.desc, list(o.norm_box), 1.0) for o in record.objects]
    facts = record.metadata
    return Prediction(facts.image_id, facts.source_width, facts.source_height, "open", "stop", "", found)


@pytest.mark.slow
def test_the_commands_of_the_library_run_in_their_order(folder):
    section = (REPOSITORY / "README.md").read_text().split("## Command line", 1)[1]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)[1]
    shell = f'set -eux\ncoordexp() {{ {sys.executable} -m coordexp.cli "$@"; }}\n{block}'
    paths = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    asked = [line.split()[2] for line in done.stderr.splitlines() if line.startswith("+ coordexp ")]
    assert asked == ["expand", "train", "merge", "detect", "validate", "evaluate"]
    recipe = read_json(folder / "out/merged/merge_manifest.json")["trained"]["recipe"]
    assert recipe["custom"]["coord_offset"]["enabled"], "the merged checkpoint knows how to be asked"
    assert (folder / "boxes.png").stat().st_size > 0
    assert read_json(folder / "eval.json")["coco"]["metrics"]["AP"] == pytest.approx(1.0)
