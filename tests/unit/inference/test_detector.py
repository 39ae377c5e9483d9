"""The detector: one loaded model, inputs of every kind, thresholds, and the pixels that the model sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from inference_helpers import SIZES, images, read, taught_checkpoint
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.cli import main
from coordexp.datasets.images import prepare_image, upright_size
from coordexp.geometry.slices import SliceOptions
from coordexp.inference.detector import Detector
from coordexp.inference.generation_state import GenerationState
from coordexp.inference.image_sources import image_sources
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Predictor
from coordexp.inference.scores import build_prediction
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import write_json


@pytest.fixture(scope="module")
def detector(taught):
    return Detector(taught, max_blocks=15)


def test_boxes_are_in_pixels_of_each_file(detector, tmp_path):
    big = images()[0].resize((300, 200))
    exif = big.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    big.save(tmp_path / "a.jpg", exif=exif)
    images()[1].convert("L").save(tmp_path / "b.png")
    found = detector.detect([tmp_path / "a.jpg", tmp_path / "b.png"], ["cat", "black cat"])
    assert [(f.width, f.height) for f in found] == [(200, 300), (128, 64)]
    for one in found:
        assert len(one.boxes) == len(one)
        for x1, y1, x2, y2 in one.boxes:
            assert 0 <= x1 <= x2 <= one.width and 0 <= y1 <= y2 <= one.height


def test_a_path_a_pil_image_an_array_and_a_folder_give_the_same_objects(detector, tmp_path):
    for n, image in enumerate(images()):
        image.save(tmp_path / f"{n}.png")
    paths = sorted(tmp_path.iterdir())
    expected = detector.detect(paths)
    assert all(len(found) for found in expected)
    for given in (tmp_path, str(tmp_path), images(), [np.asarray(image) for image in images()], map(str, paths)):
        assert [found.objects for found in detector.detect(given)] == [found.objects for found in expected]
    assert [found.name for found in detector.detect(tmp_path)] == [str(path) for path in paths]
    [alone] = detector.detect(paths[1])
    assert (alone.name, alone.answer) == (expected[1].name, expected[1].answer)
    np.testing.assert_allclose(alone.boxes, expected[1].boxes, atol=0.01)


def test_results_are_in_the_order_of_the_images_and_as_from_rule_predict(detector, taught, records, tmp_path):
    predict(taught, records, tmp_path / "p.jsonl", PredictOptions(), PromptStyle())
    expected = {prediction.image_id: prediction for prediction in read(tmp_path / "p.jsonl")}
    as_recorded = Detector(taught, max_blocks=15, resize="shrink", min_blocks=1, options=PredictOptions(batch_size=2))
    paths = [records.parent / f"{n}.png" for n in (3, 0, 4, 1, 2)]
    for path, found in zip(paths, as_recorded.stream(paths), strict=True):
        prediction = expected[100 + int(path.stem)]
        assert (found.name, found.answer, found.problems) == (str(path), prediction.text, prediction.problems)
        assert [box.tolist() for box in found.norm] == [pytest.approx(d.norm, abs=1e-4) for d in prediction.detections]


def test_slices_are_taken_from_the_image_in_its_own_size(taught, tmp_path):
    big = images()[3].resize((640, 384))
    big.save(tmp_path / "big.png")
    sliced = Detector(taught, max_blocks=6, slices=SliceOptions(grids=((2, 2),), overlap=0.0, iou=1.0, containment=1.0))
    [found] = sliced.detect(tmp_path / "big.png")
    corners = [(left, top) for top in (0, 192) for left in (0, 320)]
    crops = [big.crop((left, top, left + 320, top + 192)) for left, top in corners]
    separate = Detector(taught, max_blocks=6).detect(crops)
    assert found.answer == "\n".join(part.answer for part in separate)
    moved = [part.boxes + np.array([left, top] * 2) for part, (left, top) in zip(separate, corners, strict=True)]
    np.testing.assert_allclose(found.boxes, np.concatenate(moved), atol=0.1)


def test_the_model_is_loaded_once_and_only_when_it_is_needed(taught, monkeypatch):
    loaded = []
    load = Predictor.from_checkpoint.__func__
    monkeypatch.setattr(
        Predictor, "from_checkpoint", classmethod(lambda cls, *args: loaded.append(args) or load(cls, *args))
    )
    lazy = Detector(taught, max_blocks=9, lazy=True)
    assert not loaded
    first, second = lazy.detect(images(1)), lazy.detect(images(1))
    assert first == second and len(loaded) == 1
    Detector(taught, max_blocks=9)
    assert len(loaded) == 2


def test_objects_below_the_threshold_and_beyond_the_number_are_left_out(detector):
    everything = detector.detect(images())
    scores = sorted(score for found in everything for score in found.scores)
    limit = scores[len(scores) // 2]
    for found, all_of_it in zip(detector.detect(images(), score_threshold=limit), everything, strict=True):
        assert list(found.objects) == [o for o in all_of_it.objects if o.score >= limit]
    best = detector.detect(images(), max_objects=1)
    assert [found.scores.tolist() for found in best] == [[found.scores.max()] for found in everything]


def test_one_text_is_one_phrase_and_long_lists_are_asked_in_chunks(taught, monkeypatch):
    asked = []
    stream = Predictor.stream

    def spy(self, requests, capacity):
        requests = list(requests)
        asked.append([request.prompt.categories for request in requests])
        return stream(self, requests, capacity)

    monkeypatch.setattr(Predictor, "stream", spy)
    small = Detector(taught, max_blocks=9, options=PredictOptions(chunk=2, max_new_tokens=40))
    small.detect(images(1), "black cat, sleeping")
    [found] = small.detect(images(1), ["cat", "dog", "cat", "bun (food)"])
    assert asked == [[("black cat, sleeping",)], [("cat", "dog"), ("bun (food)",)]]
    assert len(found.answer.splitlines()) == 2


def test_phrases_are_asked_one_by_one(detector):
    [found] = detector.detect(images(1), phrases=["the left cat", "a dog"])
    assert set(found.labels) <= {"the left cat", "a dog"} and len(found.answer.splitlines()) == 2
    with pytest.raises(ConfigError, match="mutually exclusive"):
        detector.detect(images(1), ["cat"], phrases="a dog")
    with pytest.raises(ConfigError, match="invalid phrases"):
        detector.detect(images(1), phrases=[" "])


@pytest.mark.parametrize("names", [[], "", ["cat", " "], ["<|im_end|>"]])
def test_invalid_categories_are_an_error(detector, names):
    with pytest.raises(ConfigError, match="invalid categories"):
        detector.detect(images(1), names)


@pytest.mark.parametrize(("ratio", "announced"), [(0.0, True), (0.5, False), (None, False)])
def test_categories_are_announced_as_untrained(taught, tmp_path, capsys, monkeypatch, ratio, announced):
    merged = Path(shutil.copytree(taught, tmp_path / "merged"))
    if ratio is not None:
        write_json(merged / "merge_manifest.json", {"trained": {"recipe": {"custom": {"category_ratio": ratio}}}})
    monkeypatch.setattr("coordexp.inference.detector.run_jobs", nothing_found)
    Detector(merged, max_blocks=9).detect(images(1), ["cat"])
    assert ("trained without prompts that name categories" in capsys.readouterr().err) == announced


def test_an_image_that_is_too_thin_is_named(detector):
    with pytest.raises(DataError, match="image 2: expected sides"):
        detector.detect([images()[0], Image.new("RGB", (1000, 2))])


def loose(folder: Path) -> list[Path]:
    """Image files of several kinds: 16 bits per pixel, transparent, rotated by EXIF, and plain ones."""
    small, big = images()[0].resize((75, 50)), images()[1].resize((700, 300))
    deep = Image.fromarray(np.linspace(0, 65535, 75 * 50).reshape(50, 75).astype(np.uint16))
    clear = small.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = {"grows.jpg": small, "shrinks.jpg": big, "grows.png": small, "shrinks.png": big, "stays.png": images()[0]}
    for name, image in ({"deep.png": deep, "clear.png": clear} | plain).items():
        image.save(folder / name)
    for name, image in {"turned.jpg": small, "turned.tif": small.convert("L"), "turned.png": big}.items():
        image.save(folder / name, exif=exif)
    return sorted(folder.iterdir())


def test_detect_uses_the_pixels_that_conversion_writes(taught, tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    paths = loose(tmp_path / "loose")
    seen = []

    def stream(self, requests, capacity):
        for request in requests:
            seen.append(request.image())
            yield [(request.key, GenerationState(self.grammar(), PredictOptions(max_new_tokens=1)))]

    monkeypatch.setattr(Predictor, "stream", stream)
    found = Detector(taught, max_blocks=15).detect(paths)
    assert [one.name for one in found] == [str(path) for path in paths]
    monkeypatch.setattr(
        "coordexp.datasets.images._enlarged", lambda *args: None
    )  # which encodes the same pixels as JPEG
    for path, one, image in zip(paths, found, seen, strict=True):
        assert (one.width, one.height) == upright_size(path)
        [opened] = image_sources(Image.open(path))
        assert opened.size == upright_size(path)
        assert path.suffix in (".jpg", ".tif") or same(opened.load(image.size), image), path
        target = tmp_path / "converted" / f"{path.name}.png"
        prepare_image(path, target, (one.width, one.height), image.size, 95)
        assert image.mode == "RGB" and (np.asarray(image) == np.asarray(Image.open(target))).all(), path


@pytest.mark.parametrize("name", ["deep.png", "clear.png", "turned.jpg", "turned.tif"])
def test_the_overlay_is_drawn_on_the_upright_image(taught, tmp_path, monkeypatch, name):
    (tmp_path / "loose").mkdir()
    path = next(path for path in loose(tmp_path / "loose") if path.name == name)
    size = upright_size(path)
    monkeypatch.setattr("coordexp.inference.detector.run_jobs", nothing_found)
    assert main(["detect", str(path), "--model", str(taught), "--out", str(tmp_path / "drawn.png")]) == 0
    prepare_image(path, tmp_path / "expected.png", size, size, 95)
    assert same(Image.open(tmp_path / "drawn.png"), Image.open(tmp_path / "expected.png"))


def nothing_found(predictor, jobs, emit_norm):
    """`run_jobs` of a model that finds no object."""
    yield [(job.position, build_prediction([], job.record, predictor.options, emit_norm)) for job in jobs]


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and bool((np.asarray(image) == np.asarray(other)).all())


def test_polygons_are_detected_on_request(tmp_path, capsys):
    model = str(taught_checkpoint(PromptStyle(), poly=True, steps=50))
    paths = [str(tmp_path / f"{n}.png") for n in range(len(SIZES))]
    for path, image in zip(paths, images(), strict=True):
        image.resize((image.width * 2, image.height * 2)).save(path)
    rows = {}
    for options in ((), ("--polygons",)):
        assert main(["detect", *paths, "--model", model, "--max-blocks", "15", *options]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows[options] = [(row, size) for line, size in zip(lines, SIZES, strict=True) for row in line["detections"]]
    assert not any("poly" in row for row, _ in rows[()])
    outlines = [(row["poly"], row["bbox"], size) for row, size in rows["--polygons",] if "poly" in row]
    assert 0 < len(outlines) < len(rows["--polygons",])
    for poly, box, (width, height) in outlines:
        xs, ys = poly[0::2], poly[1::2]
        assert len(xs) == len(ys) >= 3 and box == [min(xs), min(ys), max(xs), max(ys)]
        assert max(xs) <= 2 * width and max(ys) <= 2 * height


def test_labels_cannot_be_restricted_without_names(taught):
    detector = Detector(taught, max_blocks=15, options=PredictOptions(restrict_labels=True), lazy=True)
    with pytest.raises(
        ConfigError, match=r"predict\.restrict_labels: `restrict_labels: True` needs a list of categories"
    ):
        detector.detect(images()[0])


def test_a_logistic_calibration_does_not_replace_mean_scores_of_slices(taught, tmp_path):
    write_json(tmp_path / "calibration.json", {"method": "logistic", "fitted": {}})
    slices = SliceOptions(grids=((2, 2),), score="mean")
    with pytest.raises(ConfigError, match=r"slices\.score: a logistic calibration replaces the mean score"):
        Detector(taught, max_blocks=9, slices=slices, calibration=tmp_path / "calibration.json", lazy=True)
