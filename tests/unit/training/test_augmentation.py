"""Augmentation: boxes and polygons follow the pixels, on the grid and within the budget."""

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import shapely
from hypothesis import given, settings, strategies
from PIL import Image

from coordexp.datasets.augmentation_options import Augmentation
from coordexp.datasets.samples import Sample
from coordexp.datasets.tokenize import to_tokens
from coordexp.recipe import Custom, load_recipe
from coordexp.records import Metadata, Object, Record, read_records
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.training import augmentation as module
from coordexp.training.augmentation import Plan, augment, draw_plan, may_flip, transform_image, transform_object

SIZE = (192, 128)
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
FRACTION = strategies.floats(0, 1)


def box(*pixels, desc="thing", size=SIZE):
    norm = (np.reshape(pixels, (-1, 2)) / size).ravel().tolist()
    return Object(desc, 1, norm, bbox_2d=list(pixels))


def poly(*pixels, desc="shape", size=SIZE):
    norm = (np.reshape(pixels, (-1, 2)) / size).ravel().tolist()
    return Object(desc, 1, norm, poly=list(pixels))


def inside(obj, size):
    """Mask [H, W] of the pixels whose centres lie in an object."""
    points = np.reshape(obj.norm, (-1, 2)) * size
    shape = shapely.box(*points.ravel()) if obj.bbox_2d is not None else shapely.Polygon(points)
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    return shapely.contains_xy(shape, x, y)


def sample_of(folder, objects, size=SIZE, categories=None, image=None):
    """A sample whose image shows each object in its own colour."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    for obj, color in zip(objects, COLORS, strict=False):
        pixels[inside(obj, size)] = color
    (image or Image.fromarray(pixels)).save(folder / "a.png")
    record = Record(["a.png"], *size, "pixel", objects, Metadata(1, *size))
    return Sample(record, folder / "a.jsonl", "a.jsonl:1", {}, categories)


def coloured(image, color):
    """Bounds in pixels of the pixels whose dominant colour is this one."""
    pixels = np.asarray(image, dtype=int)
    rows, columns = np.nonzero(pixels[..., COLORS.index(color)] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if rows.size else None


THREE = [box(16, 8, 80, 60), box(100, 20, 180, 110), box(8, 70, 90, 120)]


@settings(max_examples=40, deadline=None)
@given(flip=strategies.booleans(), scale=FRACTION, crop=strategies.booleans(), index=strategies.integers(0, 10**6))
def test_boxes_follow_the_pixels(tmp_path_factory, flip, scale, crop, index):
    folder = tmp_path_factory.mktemp("one")
    sizes = {"scale": (0.5, 0.5 + scale), "crop": float(crop), "min_visible": 0.05}
    options = Augmentation(flip=float(flip), vertical_flip=0.5, **sizes)
    sample = sample_of(folder, THREE)
    changed = augment(sample, options, (17, 0, index), 32, "random")
    record = changed.sample.record
    assert changed.image.size == (record.width, record.height)
    assert record.width % 32 == record.height % 32 == 0
    assert record.width * record.height <= SIZE[0] * SIZE[1]
    assert len(record.objects) + changed.cropped == len(THREE)
    assert all(0 <= value <= 1 for obj in record.objects for value in obj.norm)
    to_tokens(record)
    if changed.cropped:
        return
    for obj, color in zip(record.objects, COLORS, strict=True):
        expected = coloured(changed.image, color)
        assert np.abs(np.array(obj.bbox_2d) - expected).max() <= 1.01, (obj.bbox_2d, expected)


@settings(max_examples=25, deadline=None)
@given(flip=strategies.booleans(), crop=strategies.booleans(), index=strategies.integers(0, 10**6))
def test_polygons_follow_the_pixels(tmp_path_factory, flip, crop, index):
    shape = poly(60, 10, 150, 40, 120, 110, 30, 90)
    sample = sample_of(tmp_path_factory.mktemp("one"), [shape])
    options = Augmentation(flip=float(flip), vertical_flip=0.5, crop=float(crop), min_visible=0.05)
    changed = augment(sample, options, (17, 0, index), 32, "random")
    (obj,) = changed.sample.record.objects
    drawn, seen = inside(obj, changed.image.size), np.asarray(changed.image)[..., 0] > 127
    assert (drawn & seen).sum() / (drawn | seen).sum() > 0.97
    assert shapely.Polygon(np.reshape(obj.norm, (-1, 2))).is_valid
    assert len(obj.poly) <= 2 * (4 + 4)


coordinate = strategies.integers(0, 96).map(lambda x: x * 2)


@settings(deadline=None)
@given(x=strategies.tuples(coordinate, coordinate), y=strategies.tuples(coordinate, coordinate))
def test_flipping_twice_restores_image_and_objects(x, y):
    (x1, x2), (y1, y2) = sorted(x), sorted(min(v, 128) for v in y)
    if x1 == x2 or y1 == y2:
        return
    plan = Plan((0, 0, *SIZE), SIZE, flip=True)
    for obj in (box(x1, y1, x2, y2), poly(x1, y1, x2, y1, x2, y2)):
        once = transform_object(obj, SIZE, plan, 0.3)
        assert once.norm_box[0] == pytest.approx(1 - obj.norm_box[2]) and once.norm_box[1] == obj.norm_box[1]
        assert transform_object(once, SIZE, plan, 0.3).norm == pytest.approx(obj.norm, abs=1e-12)
    image = Image.effect_noise(SIZE, 90).convert("RGB")
    again = transform_image(transform_image(image, plan), plan)
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_the_defaults_change_nothing(tmp_path):
    sample = sample_of(tmp_path, THREE)
    changed = augment(sample, Augmentation(), (17, 3, 5), 32, "random")
    assert [obj.norm for obj in changed.sample.record.objects] == [pytest.approx(obj.norm, abs=1e-12) for obj in THREE]
    assert np.array_equal(np.asarray(changed.image), np.asarray(Image.open(tmp_path / "a.png")))


def test_an_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path):
    sample = sample_of(tmp_path, THREE)
    options = Augmentation(flip=0.5, scale=(0.5, 1.5), crop=0.5)

    def plan(*seed):
        drawn = augment(sample, options, seed, 32, "random")
        return msgspec.json.encode(drawn.sample.record), drawn.image.tobytes()

    assert plan(17, 1, 2) == plan(17, 1, 2)
    assert len({plan(17, epoch, index) for epoch in range(4) for index in range(4)}) >= 8


def test_one_option_does_not_change_the_draws_of_another(tmp_path):
    record = sample_of(tmp_path, THREE).record

    def drawn(seed, **options):
        return draw_plan(record, Augmentation(**options), np.random.default_rng(seed), 32, may_flip=True)

    for seed in range(30):
        assert drawn(seed, flip=0.5).flip == drawn(seed, flip=0.5, crop=1.0, scale=(0.5, 1.0)).flip
        assert drawn(seed, crop=1.0).window == drawn(seed, crop=1.0, scale=(0.5, 2.0)).window


def test_a_barely_visible_object_is_removed_and_its_category_leaves_the_prompt(tmp_path):
    objects = [box(0, 0, 100, 128, desc="cat"), box(110, 0, 192, 128, desc="dog")]
    plan = Plan((90, 0, 102, 128), (96, 128), flip=False)
    assert transform_object(objects[0], SIZE, plan, 0.3) is None
    assert transform_object(objects[0], SIZE, plan, 0.09).norm == pytest.approx([0, 0, 10 / 102, 1])
    assert transform_object(objects[1], SIZE, plan, 0.3).norm == pytest.approx([20 / 102, 0, 1, 1])
    sample = sample_of(tmp_path, objects, categories=["cat", "dog", "bird"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_plan", lambda *_: plan)
        changed = augment(sample, Augmentation(crop=1.0), (17, 0, 0), 32, "random")
    assert changed.cropped == 1 and changed.sample.categories == ["dog", "bird"]


def test_a_crop_that_would_remove_every_category_is_not_applied(tmp_path):
    """The prompt would become the open one, whose answer lists other objects than a category prompt's."""
    objects = [box(0, 0, 60, 128, desc="cat")]
    sample = sample_of(tmp_path, objects, categories=["cat"])  # the dog in the image is not in the prompt
    for categories, cropped in ((["cat"], 0), (["cat", "bird"], 1), (None, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "draw_plan", lambda *_: Plan((90, 0, 102, 128), (96, 128), flip=True))
            prompted = sample._replace(categories=categories)
            changed = augment(prompted, Augmentation(crop=1.0), (17, 0, 0), 32, "random")
        assert changed.cropped == cropped
        assert changed.sample.categories == {0: ["cat"], 1: categories and ["bird"]}[cropped]
        if not cropped:
            (kept,) = changed.sample.record.objects
            assert kept.norm == pytest.approx(objects[0].norm) and changed.image.size == SIZE


def test_objects_are_sorted_in_reading_order_again(tmp_path):
    sample = sample_of(tmp_path, [box(0, 0, 20, 20, desc="a"), box(40, 0, 60, 20, desc="b")])
    flipped = [augment(sample, Augmentation(flip=1.0), (1, 0, 0), 32, order) for order in ("sorted", "random")]
    assert [[obj.desc for obj in f.sample.record.objects] for f in flipped] == [["b", "a"], ["a", "b"]]


def test_a_sample_of_a_phrase_is_not_cropped_and_flipped_only_without_sides(tmp_path):
    sample = sample_of(tmp_path, [box(0, 0, 20, 20)])._replace(phrase="the upper one")
    options = Augmentation(crop=1.0, crop_area=(0.1, 0.1), flip=1.0, scale=(0.5, 0.5))
    changed = augment(sample, options, (1, 0, 0), 32, "sorted").sample
    assert changed.record.objects[0].norm == pytest.approx([1 - 20 / 192, 0, 1, 20 / 128])
    words = options.flip_words
    assert may_flip(sample, words) and not may_flip(sample._replace(phrase="the leftmost one"), words)


@pytest.mark.parametrize(
    ("desc", "categories", "free"),
    [
        ("left shoe", None, False),
        ("the rightmost cup", None, False),
        ("shoe", ["Left hand"], False),
        ("bright copyright", None, True),
        ("shoe", ["cup"], True),
    ],
)
def test_texts_about_left_and_right_are_not_flipped(tmp_path, desc, categories, free):
    sample = sample_of(tmp_path, [box(0, 0, 20, 20, desc=desc)], categories=categories)
    assert may_flip(sample, Augmentation().flip_words) is free
    assert may_flip(sample, ())
    changed = augment(sample, Augmentation(flip=1.0), (1, 0, 0), 32, "random")
    assert (changed.sample.record.objects[0].norm[0] > 0.5) is free


@pytest.mark.parametrize(("desc", "free"), [("upper shelf", False), ("the bottom drawer", False), ("supper", True)])
def test_texts_about_top_and_bottom_are_not_flipped_vertically(tmp_path, desc, free):
    sample = sample_of(tmp_path, [box(0, 0, 20, 20, desc=desc)])
    changed = augment(sample, Augmentation(vertical_flip=1.0), (1, 0, 0), 32, "random")
    assert (changed.sample.record.objects[0].norm[1] > 0.5) is free


def test_a_crop_on_an_object_contains_it_and_may_be_anywhere_around_it(tmp_path):
    sample = sample_of(tmp_path, [box(100, 50, 130, 80)])
    crops = {"crop": 1.0, "crop_area": (0.2, 0.3), "min_visible": 0.99}
    objects = [
        [
            augment(sample, Augmentation(**crops, crop_on_object=on), (17, 0, n), 32, "random").sample.record.objects
            for n in range(40)
        ]
        for on in (0.0, 0.5, 1.0)
    ]
    counts = [sum(map(len, found)) for found in objects]
    assert counts[0] < counts[1] < counts[2] == 40
    corners = np.array([obj.norm[:2] for found in objects[2] for obj in found])
    assert (np.ptp(corners, axis=0) > 0.4).all()


def test_objects_of_any_size_fill_the_requested_fraction_of_their_crop(tmp_path):
    options = Augmentation(crop=1.0, crop_on_object=1.0, object_side=(0.4, 0.6), scale=(9.0, 9.0), min_visible=0.9)
    for size in ((12, 8), (40, 10), (30, 60)):
        sample = sample_of(tmp_path, [box(50, 40, 50 + size[0], 40 + size[1])])
        sides = []
        for n in range(20):
            [obj] = augment(sample, options, (17, 0, n), 32, "random").sample.record.objects
            sides.append(max(obj.norm[2] - obj.norm[0], obj.norm[3] - obj.norm[1]))
        assert 0.35 < min(sides) < 0.47 and 0.53 < max(sides) < 0.65


def test_a_crop_smaller_than_its_object_is_placed_anywhere(tmp_path):
    record = sample_of(tmp_path, [box(0, 0, *SIZE)]).record
    options = Augmentation(crop=1.0, crop_area=(0.2, 0.2), crop_on_object=1.0)
    windows = {draw_plan(record, options, np.random.default_rng(n), 32, may_flip=True).window for n in range(20)}
    assert len(windows) > 15


def test_an_answer_may_be_empty_on_request(tmp_path):
    sample = sample_of(tmp_path, [box(0, 0, 20, 20, desc="cup")], categories=["cup"])
    options = Augmentation(crop=1.0, crop_area=(0.2, 0.3), empty_answers=True)
    changed = [augment(sample, options, (17, 0, n), 32, "random") for n in range(20)]
    assert all(one.sample.categories == ["cup"] for one in changed)
    assert {len(one.sample.record.objects) for one in changed} == {0, 1}
    assert all(one.image.size != SIZE or one.sample.record.objects for one in changed)


def test_an_image_of_another_size_is_refused(tmp_path):
    sample = sample_of(tmp_path, THREE, image=Image.new("RGB", (64, 64)))
    with pytest.raises(DataError, match="image is 64x64, but the record has 192x128"):
        augment(sample, Augmentation(flip=1.0), (1, 0, 0), 32, "random")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{flip: 2}", r"custom\.augmentation\.flip: expected `float` <= 1.0"),
        ("{scale: [2, 1]}", "scale: expected the smaller value first"),
        ("{crop_area: [0, 1]}", "expected `float` > 0"),
        ("{flp: 1}", "did you mean 'flip'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(f"custom: {{augmentation: {text}}}")
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "bad.yaml")


def test_the_template_augments_training_but_not_validation_images(shapes_data, tiny_model):
    from template_cases import encoder_of

    from coordexp.training.ms_swift import dataset

    files = {f"{split}_jsonl": str(shapes_data / f"{split}.coord.jsonl") for split in ("train", "val")}
    options = Augmentation(flip=1.0, crop=1.0, crop_area=(0.3, 0.5), scale=(1.0, 1.5))
    with encoder_of(tiny_model, **files, augmentation=options) as (encode, rows):
        cropped = 0
        for row in rows:
            record = dataset.sample_of(row).record
            encoded = encode.encode(dict(row))
            targets = encoded["coord_targets"]
            cropped += targets.cropped
            assert len(targets.boxes) + targets.cropped == len(record.objects)
            assert encoded["image_grid_thw"].prod() * 16**2 <= record.width * record.height
        assert cropped
        batch = encode.data_collator([encode.encode(dict(row)) for row in rows])
        assert batch["coord_targets"]["logged"]["objects_cropped"] == cropped
        dataset.set_epoch(1)
        others = [encode.encode(dict(row))["input_ids"] for row in rows]
        dataset.set_epoch(0)
        assert sum(a != encode.encode(dict(b))["input_ids"] for a, b in zip(others, rows, strict=True)) > 12
        val = dataset._Loader().load(dataset_meta=SimpleNamespace(dataset_name=dataset.VAL))
        first = next(read_records(files["val_jsonl"], "token"))
        assert encode.encode(dict(val[0]))["coord_targets"].coords == [v for obj in first.objects for v in obj.norm]


def test_active_tells_whether_any_image_may_change():
    assert not Custom().augmentation.active
    for text in ('{"flip": 0.5}', '{"crop": 0.1}', '{"scale": [0.9, 1.0]}'):
        assert msgspec.convert(json.loads(text), Augmentation).active
