"""The generator: deterministic, independent splits, annotations that agree with the image, every knob."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco_mask

from coordexp.datasets.categories import load_categories
from coordexp.datasets.formats import open_format
from coordexp.datasets.formats.shapes import BACKGROUND, COLORS, SUPERSAMPLING, ShapesOptions
from coordexp.runtime.errors import ConfigError


def made(folder, split="train", **options):
    """The source of a generated split below `folder`, and its annotations."""
    entry = {"format": "shapes", "splits": {split: {"count": 40, "seed": 3, **options}}}
    source = open_format("shapes", entry).provide(split, folder, folder)
    return source, json.loads(Path(source.annotations).read_text())


def by_image(data):
    return [(i, [a for a in data["annotations"] if a["image_id"] == i["id"]]) for i in data["images"]]


def test_same_options_same_bytes(tmp_path):
    for name in ("one", "two"):
        made(tmp_path / name, count=12)
    files = [p.relative_to(tmp_path / "one") for p in sorted((tmp_path / "one").rglob("*")) if p.is_file()]
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_splits_are_independent_and_a_larger_count_only_adds(tmp_path):
    _, train = made(tmp_path, "train", seed=1, count=20)
    _, val = made(tmp_path, "val", seed=2, count=20)
    _, more = made(tmp_path / "more", "train", seed=1, count=30)
    strip = lambda data: [(a["image_id"], a["category_id"], a["bbox"]) for a in data["annotations"]]  # noqa: E731
    shared = [a for a in strip(train) if a in strip(val)]
    assert shared == []
    assert strip(more)[: len(strip(train))] == strip(train)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["train", "val"]


def coverage(path, color) -> np.ndarray:
    """Share [H, W] of each pixel that shows `color` on the plain background."""
    pixels, ground = np.asarray(Image.open(path)).astype(float), np.array(BACKGROUND, dtype=float)
    axis = np.array(COLORS[color][0]) - ground
    return np.clip((pixels - ground) @ axis / (axis @ axis), 0, 1)


def test_boxes_agree_with_the_pixels_to_a_fraction_of_one(tmp_path):
    _, data = made(tmp_path, objects=(1, 1), shapes=("square",), not_exhaustive=0.0)
    names = {c["id"]: c["name"].split("_")[0] for c in data["categories"]}
    for image, (a,) in by_image(data):
        shown = coverage(tmp_path / "images" / "train" / image["file_name"], names[a["category_id"]])
        assert shown.sum() == pytest.approx(a["area"], rel=0.06)
        x, y, w, h = a["bbox"]
        centre = [(shown.sum(axis=i) * (np.arange(96) + 0.5)).sum() / shown.sum() for i in (0, 1)]
        assert centre == pytest.approx([x + w / 2, y + h / 2], abs=1 / SUPERSAMPLING)


@pytest.mark.parametrize("shape", ["circle", "triangle", "cross", "diamond"])
def test_outlines_agree_with_the_pixels(tmp_path, shape):
    _, data = made(tmp_path, objects=(1, 1), shapes=(shape,), count=12, not_exhaustive=0.0)
    names = {c["id"]: c["name"].split("_")[0] for c in data["categories"]}
    for image, (a,) in by_image(data):
        shown = coverage(tmp_path / "images" / "train" / image["file_name"], names[a["category_id"]])
        assert shown.sum() == pytest.approx(a["area"], rel=0.12)
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], 96, 96))).astype(bool)
        assert shown[~drawn & (shown < 1)].sum() < 0.15 * a["area"]
        assert (shown[drawn] > 0).all()


def test_hidden_parts_are_not_annotated(tmp_path):
    """Where an outline lies, its own colour is to be seen, up to the blended rim."""
    _, data = made(tmp_path, count=60, occlusion=0.5, objects=(2, 4), size=(0.3, 0.5), not_exhaustive=0.0)
    names = {c["id"]: c["name"].split("_")[0] for c in data["categories"]}
    for image, own in by_image(data):
        pixels = np.asarray(Image.open(tmp_path / "images" / "train" / image["file_name"])).astype(int)
        for a in own:
            outline = shapely.union_all([shapely.Polygon(np.reshape(r, (-1, 2))) for r in a["segmentation"]])
            inner = shapely.buffer(outline, -1.5)
            ys, xs = np.mgrid[0:96, 0:96] + 0.5
            inside = shapely.contains_xy(inner, xs, ys)
            assert (pixels[inside] == COLORS[names[a["category_id"]]][0]).all()


def test_boxes_bound_the_visible_outline(tmp_path):
    _, data = made(tmp_path, objects=(1, 5), occlusion=0.6)
    hidden = 0
    for a in data["annotations"]:
        points = np.concatenate([np.reshape(r, (-1, 2)) for r in a["segmentation"]])
        x, y, w, h = a["bbox"]
        assert points.min(axis=0) == pytest.approx([x, y], abs=0.011)
        assert points.max(axis=0) == pytest.approx([x + w, y + h], abs=0.021)
        assert min(x, y) >= 0
        assert max(x + w, y + h) <= 96.01
        hidden += len(a["segmentation"]) > 1
    assert hidden  # some shapes are cut in two by others


def test_annotations_are_in_lvis_format(tmp_path):
    source, data = made(tmp_path, count=80, not_exhaustive=0.5, negatives=4)
    assert (source.format, source.federated) == ("shapes", True)
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"])
    categories = load_categories(source.annotations)
    assert {c.frequency for c in categories} == {"r", "c", "f"}
    assert all(c.name in c.synonyms and len(c.synonyms) >= 4 for c in categories)
    every = [s for c in categories for s in c.synonyms]
    assert len(every) == len(set(every))  # no synonym is ambiguous
    listed = 0
    for image, own in by_image(data):
        present = {a["category_id"] for a in own}
        assert not present & set(image["neg_category_ids"])
        assert len(image["neg_category_ids"]) == 4
        listed += bool(image["not_exhaustive_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= present
    assert 20 < listed < 60
    for c in data["categories"]:
        own = [a["image_id"] for a in data["annotations"] if a["category_id"] == c["id"]]
        assert (c["instance_count"], c["image_count"]) == (len(own), len(set(own)))


def test_hotcoco_and_pycocotools_read_it(tmp_path):
    source, data = made(tmp_path)
    import contextlib
    import io

    from hotcoco import COCO
    from pycocotools.coco import COCO as Pycoco

    path = source.annotations
    with contextlib.redirect_stdout(io.StringIO()):
        for reader in (COCO(path), Pycoco(path)):
            assert len(reader.getAnnIds()) == len(data["annotations"])


def test_frequent_tiers_are_drawn_more_often(tmp_path):
    _, data = made(tmp_path, count=250, tail=(0.4, 0.1), image_size=32)
    share = {t: np.mean([c["instance_count"] for c in data["categories"] if c["frequency"] == t]) for t in "rcf"}
    assert share["r"] < share["c"] < share["f"]


def test_small_shapes(tmp_path):
    area = [np.mean([a["area"] for a in made(tmp_path / str(p), small=p)[1]["annotations"]]) for p in (0.0, 1.0)]
    assert area[0] > 300
    assert area[1] < 80


def test_crowds_are_of_one_category(tmp_path):
    for crowd, at_most in ((1.0, 1), (0.0, 3)):
        _, data = made(tmp_path / str(crowd), crowd=crowd, objects=(3, 3), size=(0.1, 0.2), not_exhaustive=0.0)
        kinds = [len({a["category_id"] for a in own}) for _, own in by_image(data)]
        assert max(kinds) == at_most


@pytest.mark.parametrize("occlusion", [0.0, 0.5])
def test_no_shape_is_hidden_more_than_allowed(tmp_path, occlusion):
    _, data = made(tmp_path, occlusion=occlusion, objects=(4, 4), shapes=("square",), not_exhaustive=0.0)
    fill = [a["area"] / (a["bbox"][2] * a["bbox"][3]) for a in data["annotations"]]
    if occlusion == 0:
        assert min(fill) > 0.99  # whole squares fill their boxes
    else:
        assert min(fill) < 0.95


def test_stretched_shapes(tmp_path):
    for aspect in (1.0, 3.0):
        _, data = made(tmp_path / str(aspect), aspect=aspect, occlusion=0.0, shapes=("square",))
        ratio = np.array([a["bbox"][2] / a["bbox"][3] for a in data["annotations"]])
        assert np.abs(np.log(ratio)).max() == pytest.approx(np.log(aspect), abs=0.15)


def test_box_noise_moves_boxes_and_nothing_else(tmp_path):
    _, clean = made(tmp_path / "clean", not_exhaustive=0.0)
    _, noisy = made(tmp_path / "noisy", not_exhaustive=0.0, box_noise=0.05)
    first = [by_image(d)[0] for d in (clean, noisy)]
    assert first[0][1][0]["segmentation"] == first[1][1][0]["segmentation"]
    pairs = zip(clean["annotations"], noisy["annotations"], strict=True)
    sides = np.array([[a["bbox"][2:], n["bbox"][2:]] for a, n in pairs])
    change = np.log(sides[:, 1] / sides[:, 0])
    assert 0.04 < change.std() < 0.12
    one = "images/train/000001.png"
    assert (tmp_path / "clean" / one).read_bytes() == (tmp_path / "noisy" / one).read_bytes()


def test_background_noise_is_noise(tmp_path):
    made(tmp_path, count=1, noise=12.0, objects=(0, 0))
    pixels = np.asarray(Image.open(tmp_path / "images" / "train" / "000001.png")).astype(float)
    assert 8 < pixels[..., 0].std() < 14


def test_an_image_without_shapes_is_possible(tmp_path):
    _, data = made(tmp_path, objects=(0, 0), count=3)
    assert len(data["images"]) == 3
    assert data["annotations"] == []


def test_options_of_a_split_override_those_of_the_dataset():
    entry = {"format": "shapes", "image_size": 64, "objects": [1, 4], "crowd": 0.5}
    entry |= {"splits": {"train": {"count": 10, "seed": 1, "crowd": 0.1}, "val": {"count": 5, "seed": 2}}}
    shapes = open_format("shapes", entry)
    assert shapes.split_options("train") == ShapesOptions(count=10, seed=1, image_size=64, objects=(1, 4), crowd=0.1)
    assert shapes.split_options("val") == ShapesOptions(count=5, seed=2, image_size=64, objects=(1, 4), crowd=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colours": ["red"]}, r"datasets\.mine\.colours: unknown key, did you mean 'colors'"),
        ({"colors": ["mauve"]}, "mauve"),
        ({"objects": [3, 1]}, "objects: expected 0 <= fewest <= most"),
        ({"size": [0.5, 0.2]}, "size: expected 0 < smallest <= largest <= 1"),
        ({"image_size": "large"}, r"datasets\.mine\.image_size"),
        ({"occlusion": 1.5}, r"datasets\.mine\.occlusion"),
        ({"splits": {"train": {"count": 0}}}, r"datasets\.mine\.splits\.train\.count"),
    ],
)
def test_invalid_options_are_configuration_errors(change, words):
    entry = {"format": "shapes", "splits": {"train": {"count": 1, "seed": 0}}, **change}
    with pytest.raises(ConfigError, match=words):
        open_format("mine", entry)


def test_a_failed_run_leaves_the_earlier_images(tmp_path, monkeypatch):
    made(tmp_path, count=3)
    monkeypatch.setattr(Image.Image, "reduce", lambda *a: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        made(tmp_path, count=5)
    assert len(list((tmp_path / "images" / "train").iterdir())) == 3
    assert msgspec.json.decode((tmp_path / "train.annotations.json").read_bytes())["images"]
