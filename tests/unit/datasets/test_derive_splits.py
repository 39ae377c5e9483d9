"""Derived splits: a dataset without val gets a seeded one, by image or by group, and every annotation is kept."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest
from dataset_cases import CATEGORIES, write_dataset

from coordexp.datasets import derive_splits
from coordexp.datasets.convert import ConvertOptions, convert
from coordexp.datasets.download import local_annotations_sha256, options_for_split, provide
from coordexp.datasets.formats import known_splits, open_format
from coordexp.datasets.ordering import stable_hash
from coordexp.datasets.source import load_source
from coordexp.records import read_records
from coordexp.runtime import tuning
from coordexp.runtime.errors import ConfigError, DataError


@pytest.fixture
def dataset(tmp_path):
    """A COCO dataset of 30 images of 6 scenes with a train and a test split, and its entry."""
    root = tmp_path / "mine"
    images = [
        {"id": i, "file_name": f"s{i % 6}_{i}.jpg", "width": 64, "height": 64, "scene": i % 6} for i in range(1, 31)
    ]
    ids = [(i, k) for i in range(1, 31) for k in (0, 1)]
    boxes = [{"id": 2 * i + k, "image_id": i, "category_id": 7, "bbox": [k, 1, 20, 20]} for i, k in ids]
    write_dataset(root, images, boxes, format="coco")
    files = {"train": "annotations.json", "test": "annotations.json"}
    dirs = {"train": ["images"], "test": ["images"]}
    return {"format": "coco", "root": str(root), "annotations": files, "image_dirs": dirs}


def read(entry, split, tmp_path):
    manifest = tmp_path / "work" / f"{split}.source.json"
    provide("mine", entry, split, tmp_path / "work" / "raw", manifest)
    source = load_source(manifest)
    return json.loads((manifest.parent / source.annotations).read_text()), source


def images_of(content):
    return {image["id"] for image in content["images"]}


def test_val_is_taken_out_of_train_and_nothing_is_lost(dataset, tmp_path):
    entry = {**dataset, "derived_splits": {"val": {"fraction": 0.2}}}
    (val, source), (train, _) = (read(entry, split, tmp_path) for split in ("val", "train"))
    assert (source.split, source.original_sha256 is None) == ("val", False)
    assert len(images_of(val)) == 6 and images_of(val) | images_of(train) == set(range(1, 31))
    assert not images_of(val) & images_of(train)
    for part in (val, train):
        assert {a["image_id"] for a in part["annotations"]} == images_of(part)
        assert part["categories"] == CATEGORIES
    assert len(val["annotations"]) + len(train["annotations"]) == 60
    assert read(dataset, "train", tmp_path)[1].original_sha256 is None  # the user's own file, unchanged
    assert read(entry, "test", tmp_path)[1].annotations.startswith("/")


def test_the_same_seed_selects_the_same_images_and_another_one_others(dataset, tmp_path):
    chosen = []
    for n, seed in enumerate((1, 1, 2)):
        entry = {**dataset, "derived_splits": {"val": {"fraction": 0.3, "seed": seed}}}
        chosen.append(images_of(read(entry, "val", tmp_path / str(n))[0]))
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("by", [{"group": r"^s(\d+)_"}, {"group_key": "scene"}])
def test_images_of_one_group_stay_together(dataset, tmp_path, by):
    entry = {**dataset, "derived_splits": {"val": {"fraction": 0.25, **by}, "dev": {"fraction": 0.2, **by}}}
    parts = {split: images_of(read(entry, split, tmp_path)[0]) for split in ("val", "dev", "train")}
    scenes = {split: {i % 6 for i in images} for split, images in parts.items()}
    assert sum(map(len, parts.values())) == 30 and sum(map(len, scenes.values())) == 6
    assert len(scenes["val"]) == 2 and len(scenes["dev"]) == 2


def test_entries_that_belong_to_no_image_are_counted_once(dataset, tmp_path):
    path = tmp_path / "mine" / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] += [{"id": 900, "image_id": 77, "category_id": 7, "bbox": [0, 0, 1, 1]}, {"id": 901}]
    path.write_text(json.dumps(content))
    entry = {**dataset, "derived_splits": {"val": {}}}
    listed = 0
    for split in ("val", "train"):
        read(entry, split, tmp_path)
        out = tmp_path / "out" / split
        options = ConvertOptions(on_bad="skip", num_workers=1)
        convert(tmp_path / f"work/{split}.source.json", out / "a.jsonl", out / "images", options, 4, out / "stats.json")
        listed += json.loads((out / "stats.json").read_text())["objects"]["listed"]
        assert {r.metadata.image_id for r in read_records(out / "a.jsonl", "pixel")}
    assert listed == 62


def test_an_image_without_the_key_of_groups_is_named(dataset, tmp_path):
    entry = {**dataset, "derived_splits": {"val": {"group_key": "patient"}}}
    with pytest.raises(DataError, match="image 1 lacks the key 'patient'"):
        read(entry, "val", tmp_path)


def test_a_split_needs_two_groups(dataset, tmp_path):
    entry = {**dataset, "derived_splits": {"val": {"group": "(s)"}}}
    with pytest.raises(DataError, match="at least two groups of images"):
        read(entry, "val", tmp_path)


@pytest.mark.parametrize(
    ("derived", "message"),
    [
        ({"test": {}}, "derived_splits.test: the dataset has this split already"),
        ({"val": {"source": "trian"}}, "derived_splits.val.source: no such split"),
        ({"val": {"fraction": 0.6}, "dev": {"fraction": 0.5}}, "nothing would remain of the split 'train'"),
        ({"val": {"group": "a", "group_key": "b"}}, "mutually exclusive"),
        ({"val": {"group": "abc"}}, "expected one group in parentheses"),
        ({"val": {"group": "("}}, "not a regular expression"),
        ({"val": {"fraction": 0}}, "fraction: expected"),
    ],
)
def test_mistakes_are_named(dataset, derived, message):
    with pytest.raises(ConfigError, match=message):
        open_format("mine", {**dataset, "derived_splits": derived})


def test_a_missing_split_says_how_to_derive_it(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"derived_splits\.val"):
        read(dataset, "val", tmp_path)


def test_only_the_splits_of_the_same_images_depend_on_a_derived_split(dataset, tmp_path):
    entry = {**dataset, "derived_splits": {"val": {"fraction": 0.3}}}
    assert known_splits(open_format("mine", entry)) == ["train", "test", "val"]
    assert options_for_split("mine", entry, "test")["derived_splits"] == {}
    assert options_for_split("mine", entry, "train")["derived_splits"] == {"val": {"fraction": 0.3}}
    assert options_for_split("mine", entry, "val")["annotations"] == {"train": "annotations.json"}
    _, source = read(entry, "val", tmp_path)
    assert local_annotations_sha256("mine", entry, "val", tmp_path / "work/val.source.json") == source.original_sha256


def test_the_manifest_may_be_in_a_relative_folder(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {**dataset, "derived_splits": {"val": {}}}
    provide("mine", entry, "val", "work/raw", "work/val.source.json")
    assert load_source("work/val.source.json").annotations == "raw/val.part.annotations.json"


def reference(images, derived):
    """The split of each image id, by the definition: groups are taken in the order of their hashes."""
    remaining, chosen = images, {}
    for name, options in derived.items():
        groups = {}
        for image in remaining:
            number = image["file_name"][1] if "group" in options else image.get("scene")
            group = f"group {number}" if {"group", "group_key"} & set(options) else f"image {image['id']}"
            groups.setdefault(group, []).append(image)
        wanted, taken = max(1, round(options["fraction"] * len(images))), 0
        for group in sorted(groups, key=lambda group: stable_hash(17, group))[:-1]:
            if taken < wanted:
                chosen |= {str(image["id"]): name for image in groups[group]}
                taken += len(groups[group])
        remaining = [image for image in remaining if str(image["id"]) not in chosen]
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_the_splits_are_those_of_a_plain_loop_whatever_the_sizes_of_its_parts(dataset, tmp_path, monkeypatch, seed):
    """Ids are repeated, and integers or mixed with texts; some annotations belong to no image."""
    rng, path = random.Random(seed), Path(dataset["root"]) / "annotations.json"
    content = json.loads(path.read_text())
    image_ids = [*range(25), *("3", "x", "y")[: 3 * (seed % 2)]]
    for image in content["images"]:
        image["id"] = rng.choice(image_ids)
    for annotation in content["annotations"]:
        annotation["image_id"] = rng.choice([*image_ids, 77])
    path.write_text(json.dumps(content))
    derived = {"val": {"fraction": 0.2}, "dev": {"fraction": 0.3, "group": r"^s(\d+)_"}, "few": {"fraction": 0.01}}
    if seed > 3:
        derived["dev"] = {"fraction": 0.79, "group_key": "scene"}
        del derived["few"]
    monkeypatch.setattr(derive_splits, "ELEMENTS_PER_READ", 7)
    monkeypatch.setattr(tuning, "ROWS_PER_BLOCK", 5)
    monkeypatch.setattr(tuning, "KEYS_IN_MEMORY", 4)
    entry, chosen = {**dataset, "derived_splits": derived}, reference(content["images"], derived)
    for split in (*derived, "train"):
        part = read(entry, split, tmp_path)[0]
        for name, key in (("images", "id"), ("annotations", "image_id")):
            assert part[name] == [e for e in content[name] if chosen.get(str(e[key]), "train") == split]


def test_memory_grows_by_a_few_bytes_per_image(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(derive_splits, "ELEMENTS_PER_READ", 200)
    for name in ("ROWS_PER_BLOCK", "KEYS_IN_MEMORY"):
        monkeypatch.setattr(tuning, name, 500)
    monkeypatch.setattr(tuning, "JSON_READ_BYTES", 1 << 14)
    monkeypatch.setattr(tuning, "JSON_RANGE_BYTES", 1 << 16)
    path, peaks = Path(dataset["root"]) / "annotations.json", []
    for count in (1_000, 3_000):
        images = [{"id": k, "file_name": f"{k}.jpg", "width": 9, "height": 9} for k in range(count)]
        boxes = [{"id": k, "image_id": k * 7 % count, "category_id": 7, "bbox": [0, 0, 1, 1]} for k in range(2 * count)]
        path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
        tracemalloc.start()
        provide("mine", {**dataset, "derived_splits": {"val": {}}}, "val", tmp_path / "raw", tmp_path / "val.json")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 30 * 2_000  # bytes
