"""Every example of docs/formats.md is read as it is described."""

import re
from pathlib import Path

import pytest
import yaml
from dataset_cases import draw_image
from format_cases import boxes, provided

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
SECTIONS = {m[1]: m[2] for m in re.finditer(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)}
DOG = ("dog", (10, 20, 100, 200))
EXPECTED = {
    "coco": {"a.jpg": [DOG]},
    "yolo": {"images/a.jpg": [DOG], "images/b.jpg": [("cat", (64, 96, 256, 192))]},
    "voc": {"a.jpg": [DOG]},
    "csv": {"a.jpg": [DOG]},
    "odvg": {"a.jpg": [DOG], "b.jpg": [("cat", (5, 5, 45, 55))]},
    "refcoco": {"a.jpg": [DOG]},
    "ms_swift": {"a.jpg": [DOG, ("dog", (0, 0, 50, 60))], "b.jpg": [("cat", (64, 96, 256, 192))]},
    "qwen": {"a.jpg": [("dog", (10.24, 20.16, 99.84, 199.68))]},
    "imagefolder": {"a.jpg": [DOG], "b.jpg": []},
}


def example(section, root):
    """Write the files of an example to `root`; returns the dataset's entry."""
    for name, block in re.findall(r"^`([\w./()]+)`:\n\n```\w+\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(block, encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    [entry] = yaml.safe_load(block)["datasets"].values()
    return {**entry, "root": str(root)}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_read_as_described(name, tmp_path):
    entry = example(SECTIONS[name], tmp_path)
    for folder in ("images", "train"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for image in ("a.jpg", "b.jpg"):
            draw_image(640, 480).save(tmp_path / folder / image)
    assert entry["format"] == name
    assert boxes(provided(tmp_path, entry)) == EXPECTED[name]


def test_the_example_of_a_saved_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["cat", "dog"])
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(label)}
    rows = {"image": [draw_image(640, 480)], "objects": [{"bbox": [[10, 20, 100, 200]], "category": [1]}]}
    kind = datasets.Features({"image": datasets.Image(), "objects": objects})
    split = datasets.Dataset.from_dict(rows, features=kind)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path)
    entry = example(SECTIONS["hf"], tmp_path)
    for name in ("train", "val"):
        assert boxes(provided(tmp_path, entry, name)) == {"000000001.png": [DOG]}
