"""Calibrated scores are probabilities, fitted by the rules of the evaluation and never on training images."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from inference_helpers import images, read

from coordexp.datasets.categories import Category
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.geometry.slices import SliceOptions
from coordexp.inference import calibrate
from coordexp.inference.detector import Detector
from coordexp.inference.gather import gather
from coordexp.inference.options import PredictOptions, score_options
from coordexp.records import Detection, Metadata, Object, Prediction, Record, coord_token, software_file
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json, write_jsonl

CATEGORIES = [Category(id=1, name="cat"), Category(id=7, name="dog"), Category(id=9, name="cow")]
BOX, ELSEWHERE = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]


def synthetic(count: int, seed: int) -> tuple[list[Detection], np.ndarray]:
    """Detections and whether each is correct, which has a known probability given their score parts."""
    rng = np.random.default_rng(seed)
    terms = -rng.exponential(1.0, (count, 4))
    spread = rng.uniform(0.001, 0.2, count)
    chance = 1 / (1 + np.exp(-(2 + terms[:, 1] + 1.5 * terms[:, 2] - 8 * spread)))
    names = calibrate.FEATURES[:4]
    rows = []
    for term, width in zip(terms, spread, strict=True):
        parts = dict(zip(names, map(float, term), strict=True)) | {"spread": float(width)}
        rows.append(Detection("cat", BOX, math.exp(term[1] + term[2]), score_parts=parts))
    return rows, rng.random(count) < chance


def files(folder, count: int, seed: int):
    """(predictions, records, annotations): one cat per image, detected where `synthetic` is correct."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, records, annotations = [], [], []
    for n, (detection, correct) in enumerate(zip(*synthetic(count, seed), strict=True)):
        found = msgspec.structs.replace(detection, norm=BOX if correct else ELSEWHERE)
        rows.append(Prediction(n, 100, 100, "open", "stop", "", [found]))
        cat = Object("cat", 1, BOX, bbox_2d=[10, 10, 50, 50])
        records.append(Record(["x.png"], 100, 100, "pixel", [cat], Metadata(n, 100, 100, file_name=f"{n}.jpg")))
        annotations.append({"id": n + 1, "image_id": n, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600})
    write_jsonl(folder / "p.jsonl", rows)
    write_jsonl(folder / "r.jsonl", records)
    images = [{"id": n, "width": 100, "height": 100} for n in range(count)]
    write_json(folder / "a.json", {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return folder / "p.jsonl", folder / "r.jsonl", folder / "a.json"


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_calibrated_scores_equal_frequencies(method):
    fitted = calibrate.fit_detections(*synthetic(4000, 1), method, {})
    held, correct = synthetic(4000, 2)
    probability = fitted.probability(held)
    raw = np.array([d.score for d in held])

    def error(scores: np.ndarray) -> float:
        bins = np.minimum((scores * 10).astype(int), 9)
        return sum(abs(scores[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean() for b in set(bins))

    assert error(probability) < 0.03 and error(raw) > 2 * error(probability)
    if method == "isotonic":
        assert (np.diff(probability[np.argsort(raw)]) >= -1e-12).all()


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_calibration_fitted_on_one_split_is_right_on_another(tmp_path, method):
    predictions, records, _ = files(tmp_path / "calibration", 800, 1)
    fitted = calibrate.fit(predictions, records, CATEGORIES, tmp_path / "c.json", method, federated=False)
    assert calibrate.load(tmp_path / "c.json") == fitted
    assert fitted.fitted["detections"] == fitted.fitted["images"] == 800
    assert fitted.fitted["correct"] == synthetic(800, 1)[1].sum()
    shard, _, annotations = files(tmp_path / "eval", 800, 2)
    gather([shard], tmp_path / "calibrated.jsonl", tmp_path / "c.json")
    options, names = EvaluateOptions(bootstrap=0), {"dataset": "made", "split": "val"}
    raw = evaluate(shard, annotations, options, **names)
    done = evaluate(tmp_path / "calibrated.jsonl", annotations, options, **names)
    assert (raw.counts.calibrated_detections, done.counts.calibrated_detections) == (0, 800)
    assert done.coco.calibration.ece < 0.05 < raw.coco.calibration.ece
    assert done.coco.calibration.brier < raw.coco.calibration.brier


def test_calibrating_twice_equals_once_and_keeps_the_raw_score(tmp_path):
    predictions, records, _ = files(tmp_path, 200, 1)
    fitted = calibrate.fit(predictions, records, CATEGORIES, tmp_path / "c.json", federated=False)
    calibrate.apply(predictions, fitted, tmp_path / "once.jsonl")
    calibrate.apply(tmp_path / "once.jsonl", fitted, tmp_path / "twice.jsonl")
    raw, once = read(predictions), read(tmp_path / "once.jsonl")
    assert once == read(tmp_path / "twice.jsonl") != raw
    for before, after in zip(raw, once, strict=True):
        assert after.detections[0].score_parts["raw_score"] == before.detections[0].score


SAMPLED = PredictOptions(samples=4, merge_iou=0.6)


def predicted_with(predictions, options):
    """Write beside `predictions` that they were made with `options`."""
    write_json(software_file(predictions), [{"code": "a", "score_options": score_options(options)}])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (PredictOptions(), "predict.samples"),
        (msgspec.structs.replace(SAMPLED, decode="argmax"), "predict.decode"),
        (msgspec.structs.replace(SAMPLED, suppress_repeats=True), "predict.suppress_repeats"),
        (msgspec.structs.replace(SAMPLED, continue_above=0.5), "predict.continue_above"),
        (msgspec.structs.replace(SAMPLED, slices=SliceOptions(grids=((2, 2),))), "predict.slices"),
        (msgspec.structs.replace(SAMPLED, merge_iou=0.5), "predict.merge_iou"),
    ],
)
def test_a_calibration_is_refused_for_scores_that_mean_something_else(tmp_path, options, field):
    predictions, records, _ = files(tmp_path, 60, 1)
    predicted_with(predictions, SAMPLED)
    fitted = calibrate.fit(predictions, records, CATEGORIES, tmp_path / "c.json", federated=False)
    assert score_options(fitted.options) == score_options(SAMPLED)
    predicted_with(predictions, options)
    with pytest.raises(DataError, match=rf"p\.jsonl: {field}: the calibration was fitted with another value"):
        calibrate.apply(predictions, fitted, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=field):
        gather([predictions], tmp_path / "out.jsonl", tmp_path / "c.json")
    assert not (tmp_path / "out.jsonl").exists()


def test_options_that_do_not_change_what_a_score_means_may_differ(tmp_path):
    predictions, records, _ = files(tmp_path, 60, 1)
    slices = SliceOptions(grids=((2, 2),))
    options = PredictOptions(slices=slices)
    predicted_with(predictions, options)
    fitted = calibrate.fit(predictions, records, CATEGORIES, tmp_path / "c.json", federated=False)
    changes = {"slices": SliceOptions(grids=((2, 2),), max_blocks=9), "max_new_tokens": 7, "batch_size": 2}
    predicted_with(predictions, msgspec.structs.replace(options, **changes, merge_iou=0.9, duplicate_iou=0.8))
    assert calibrate.apply(predictions, fitted, tmp_path / "out.jsonl") == 60
    software_file(predictions).unlink()  # predictions of another tool
    assert calibrate.apply(predictions, fitted, tmp_path / "out.jsonl") == 60


def test_predictions_with_different_options_are_not_calibrated_together(tmp_path):
    predictions, records, _ = files(tmp_path, 60, 1)
    entries = [{"score_options": score_options(options)} for options in (SAMPLED, PredictOptions())]
    write_json(software_file(predictions), entries)
    with pytest.raises(DataError, match="made with different options"):
        calibrate.fit(predictions, records, CATEGORIES, tmp_path / "c.json", federated=False)


def test_a_detector_uses_the_options_of_its_calibration_unless_others_are_given(taught, tmp_path):
    fitted = {"options": score_options(msgspec.structs.replace(SAMPLED, slices=SliceOptions(grids=((2, 2),))))}
    write_json(tmp_path / "c.json", {"method": "isotonic", "fitted": fitted, "knots": [0.0], "values": [0.5]})
    detector = Detector(taught, max_blocks=9, calibration=tmp_path / "c.json", lazy=True)
    assert (detector.options.samples, detector.options.merge_iou) == (4, 0.6)
    assert detector.options.slices == SliceOptions(grids=((2, 2),), max_blocks=9)
    with pytest.raises(DataError, match=r"c\.json: predict\.samples: .*expected 4, found 1"):
        Detector(taught, max_blocks=9, calibration=tmp_path / "c.json", options=PredictOptions(), lazy=True)


def judged(tmp_path, detections: list[Detection], *, federated: bool) -> tuple[int, int]:
    """(judged, correct) per image of ten with these detections; each has a cat, and cows are known to be absent."""
    cat = Object("cat", 1, BOX, bbox_2d=[10, 10, 50, 50])
    parts = dict.fromkeys((*calibrate.FEATURES[:4], "spread"), 0.0)
    found = [msgspec.structs.replace(d, score_parts=parts) for d in detections]
    metadata = [Metadata(n, 100, 100, neg_category_ids=[9]) for n in range(10)]
    write_jsonl(tmp_path / "r.jsonl", [Record(["x.png"], 100, 100, "pixel", [cat], m) for m in metadata])
    write_jsonl(tmp_path / "p.jsonl", [Prediction(n, 100, 100, "open", "stop", "", found) for n in range(10)])
    args = (tmp_path / "p.jsonl", tmp_path / "r.jsonl", CATEGORIES, tmp_path / "c.json")
    fitted = calibrate.fit(*args, federated=federated).fitted
    return fitted["detections"] / 10, fitted["correct"] / 10


def test_correctness_follows_the_rules_of_the_evaluation(tmp_path):
    twice = [Detection("cat", BOX, 0.2), Detection("The Cat", BOX, 0.9), Detection("cat", ELSEWHERE, 1.0)]
    assert judged(tmp_path, twice, federated=False) == (3, 1)
    unmapped, unknown, absent = (Detection(desc, ELSEWHERE, 0.5) for desc in ("unicorn", "dog", "cow"))
    assert judged(tmp_path, [twice[0], unmapped, unknown, absent], federated=False) == (4, 1)
    assert judged(tmp_path, [twice[0], unmapped, unknown, absent], federated=True) == (2, 1)


def test_detections_of_omitted_crowds_are_ignored(tmp_path):
    """COCO records list the categories of omitted annotations; a box without a category is still wrong."""
    cat = Object("cat", 1, BOX, bbox_2d=[10, 10, 50, 50])
    parts = dict.fromkeys((*calibrate.FEATURES[:4], "spread"), 0.0)
    named = [("cat", BOX), ("cow", ELSEWHERE), ("dog", ELSEWHERE), ("unicorn", ELSEWHERE)]
    found = [Detection(desc, box, 0.5, score_parts=parts) for desc, box in named]
    metadata = [Metadata(n, 100, 100, not_exhaustive_category_ids=[1, 9]) for n in range(10)]
    write_jsonl(tmp_path / "r.jsonl", [Record(["x.png"], 100, 100, "pixel", [cat], m) for m in metadata])
    write_jsonl(tmp_path / "p.jsonl", [Prediction(n, 100, 100, "open", "stop", "", found) for n in range(10)])
    args = (tmp_path / "p.jsonl", tmp_path / "r.jsonl", CATEGORIES, tmp_path / "c.json")
    fitted = calibrate.fit(*args, federated=False).fitted
    assert (fitted["detections"], fitted["correct"]) == (30, 10)


def test_training_images_are_rejected(tmp_path):
    predictions, records, _ = files(tmp_path, 50, 1)
    token = Object("cat", 1, BOX, bbox_2d=[coord_token(k) for k in (100, 100, 500, 500)])
    others = [Record(["x"], 9, 9, "token", [token], Metadata(n, 9, 9, file_name=f"{n}.jpg")) for n in (50, 51)]
    write_jsonl(tmp_path / "rest.jsonl", others)
    fit = (predictions, records, CATEGORIES, tmp_path / "c.json")
    calibrate.fit(*fit, federated=False, trained_on=[tmp_path / "rest.jsonl"])
    seen = Record(["x"], 9, 9, "token", [token], Metadata(7, 9, 9, file_name="train2017/7.jpg"))
    write_jsonl(tmp_path / "mixed.jsonl", [*others, seen])
    with pytest.raises(DataError, match=r"mixed\.jsonl:3: calibration image 7 is in the training data"):
        calibrate.fit(*fit, federated=False, trained_on=[tmp_path / "rest.jsonl", tmp_path / "mixed.jsonl"])
    truncated = tmp_path / "mixed.jsonl"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"mixed\.jsonl:\d+: not a record"):
        calibrate.fit(*fit, federated=False, trained_on=[truncated])


def test_too_few_detections_are_an_error():
    found, _ = synthetic(50, 3)
    with pytest.raises(DataError, match="too few detections"):
        calibrate.fit_detections(found, np.ones(50, dtype=bool), "logistic", {})


def test_imported_responses_can_only_be_calibrated_isotonically(tmp_path):
    found, correct = synthetic(50, 3)
    bare = [msgspec.structs.replace(d, score_parts={}) for d in found]
    with pytest.raises(DataError, match="method isotonic"):
        calibrate.fit_detections(bare, correct, "logistic", {})
    assert calibrate.fit_detections(bare, correct, "isotonic", {}).probability(bare).min() >= 0


def test_detect_applies_a_calibration(taught, tmp_path):
    write_json(tmp_path / "c.json", calibrate.fit_detections(*synthetic(400, 1), "logistic", {}))
    images()[0].save(tmp_path / "a.png")
    (raw,) = Detector(taught, max_blocks=9).detect(tmp_path / "a.png")
    (done,) = Detector(taught, max_blocks=9, calibration=tmp_path / "c.json").detect(tmp_path / "a.png")
    assert [d.score_parts["raw_score"] for d in done.objects] == pytest.approx([d.score for d in raw.objects])
    assert (done.boxes == raw.boxes).all() and done.scores[0] != raw.scores[0]


def scored(scores: np.ndarray) -> list[Detection]:
    return [Detection("cat", [0.0, 0.0, 1.0, 1.0], float(score)) for score in scores]


def test_equal_scores_become_their_share_of_correct_detections():
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.ones(900), rng.uniform(0, 0.5, 100)])
    correct = np.concatenate([np.arange(900) < 360, rng.random(100) < 0.1])
    for order in (np.arange(1000), np.arange(1000)[::-1], rng.permutation(1000)):
        fitted = calibrate.fit_detections(scored(scores[order]), correct[order], "isotonic", {})
        assert fitted.probability(scored(np.ones(1)))[0] == pytest.approx(0.4)


def test_isotonic_calibration_does_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 20, 500) / 20  # many ties
    correct = rng.random(500) < scores
    fits = []
    for _ in range(5):
        order = rng.permutation(500)
        fits.append(calibrate.fit_detections(scored(scores[order]), correct[order], "isotonic", {}))
    assert all(fit == fits[0] for fit in fits)
    assert (np.diff(fits[0].values) > 0).all()


def test_isotonic_calibration_of_one_score_is_the_share_of_correct_detections():
    fitted = calibrate.fit_detections(scored(np.ones(100)), np.arange(100) < 30, "isotonic", {})
    assert fitted.probability(scored(np.array([0.0, 0.5, 1.0]))) == pytest.approx([0.3] * 3)


def test_isotonic_calibration_is_the_share_of_correct_detections_at_every_frequent_score():
    """Also where a block of falling shares spans distant scores: 900 boxes at 0.99 of which 40 % are right."""
    groups = {0.1: (900, 0.45), 0.99: (900, 0.4), 1.0: (900, 0.9)}
    scores = np.repeat(list(groups), [n for n, _ in groups.values()])
    correct = np.concatenate([np.arange(n) < share * n for n, share in groups.values()])
    fitted = calibrate.fit_detections(scored(scores), correct, "isotonic", {})
    assert fitted.probability(scored([0.1, 0.5, 0.99, 1.0])) == pytest.approx([0.425, 0.425, 0.425, 0.9], abs=1e-5)
    assert np.all(np.diff(fitted.probability(scored(np.linspace(0.1, 1, 50)))) > 0)
