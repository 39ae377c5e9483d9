"""`coordexp detect` and `coordexp predict`: folders, globs, thresholds, outputs, and ids for evaluation."""

import json

import pytest
from inference_helpers import images
from PIL import Image

from coordexp.cli import main
from coordexp.evaluation.detections import read_predictions
from coordexp.inference.detector import Detector
from coordexp.runtime.io import read_jsonl


@pytest.fixture
def photos(tmp_path):
    """A folder with two images, and one in a folder below it."""
    (tmp_path / "photos/more").mkdir(parents=True)
    for name, image in zip(("a.png", "b.webp", "more/a.png"), images(), strict=False):
        image.save(tmp_path / "photos" / name, lossless=True)
    return tmp_path / "photos"


@pytest.fixture
def model(taught):
    return ["--model", str(taught), "--max-blocks", "15"]


def test_a_folder_and_a_glob_are_written_and_drawn(model, photos, tmp_path, capsys):
    out = tmp_path / "found"
    command = ["detect", str(photos), str(photos / "**/more/*.png"), *model, "--out", str(out)]
    assert main(command) == 0
    rows = list(read_jsonl(out / "detections.jsonl"))
    assert [row["image"] for row in rows] == [str(photos / name) for name in ("a.png", "b.webp", "more/a.png")]
    for name in ("a.png", "b.webp", "more/a.png"):
        assert Image.open(out / "images" / name).size == Image.open(photos / name).size
    total = sum(len(row["detections"]) for row in rows)
    assert total and f"wrote {out}: {total} objects in 3 images" in capsys.readouterr().out
    assert main(command) == 0  # replaces its own output
    assert main([*command[:-1], str(photos)]) == 2
    assert "was not written by `detect`" in capsys.readouterr().err


def test_the_threshold_limits_what_is_printed(model, photos, capsys):
    command = ["detect", str(photos), *model]
    assert main(command) == 0
    scores = [d["score"] for line in capsys.readouterr().out.splitlines() for d in json.loads(line)["detections"]]
    limit = sorted(scores)[len(scores) // 2]
    assert main([*command, "--score-threshold", str(limit)]) == 0
    kept = [d["score"] for line in capsys.readouterr().out.splitlines() for d in json.loads(line)["detections"]]
    assert kept == [score for score in scores if score >= limit] and len(kept) < len(scores)


def test_slices_are_predicted_and_recorded(model, photos, tmp_path):
    out = tmp_path / "predictions.jsonl"
    sliced = ["--slices", "2x1,1X1", "--slice-overlap", "0.5", "--slice-blocks", "4"]
    assert main(["predict", str(photos), *model, *sliced, "--out", str(out)]) == 0
    rows = [row for _, row in read_predictions(out)]
    assert [row.slices[-1] for row in rows] == [[0, 0, 1, 1]] * 2
    assert all(len(row.slices) == row.text.count('{"objects"') == 3 for row in rows)
    assert all(row.detections for row in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--slices", "3"], "invalid grid"),
        (["--slices", "0x2"], "invalid slices"),
        (["--slice-overlap", "0.5"], "no effect without slices"),
        (["--slice-size", "50", "--slice-overlap", "2"], "overlap"),
    ],
)
def test_invalid_slices_are_refused(model, photos, capsys, given, message):
    assert main(["detect", str(photos), *model, *given]) == 2
    assert message in capsys.readouterr().err


def test_an_image_as_output_needs_a_single_image(model, photos, tmp_path, capsys):
    command = ["detect", str(photos), *model, "--out", str(tmp_path / "boxes.png")]
    assert main(command) == 2
    assert "found 2\n  -> pass a folder as --out, for example boxes" in capsys.readouterr().err
    assert main(["detect", str(photos / "*.jpg"), *model]) == 2
    assert "no file matches" in capsys.readouterr().err


def test_predictions_of_a_folder_are_evaluated_with_the_ids_of_the_annotations(model, photos, tmp_path, capsys):
    entries, boxes = [], []
    for n, name in enumerate(("a.png", "b.webp")):
        width, height = Image.open(photos / name).size
        entries.append({"id": 7 + n, "file_name": name, "width": width, "height": height})
        boxes.append({"id": n + 1, "image_id": 7 + n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0})
    gt, out = tmp_path / "gt.json", tmp_path / "predictions.jsonl"
    gt.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}))
    command = ["predict", str(photos), *model, "--out", str(out)]
    assert main([*command, "--gt", str(gt)]) == 0
    assert [prediction.image_id for _, prediction in read_predictions(out)] == [7, 8]
    assert (tmp_path / "predictions.software.json").is_file()
    assert main(["evaluate", "--gt", str(gt), "--pred", str(out), "--out", str(tmp_path / "eval.json")]) == 0
    capsys.readouterr()
    assert main([*command[:1], str(photos / "**/*.*"), *command[2:]]) == 0
    assert [prediction.image_id for _, prediction in read_predictions(out)] == ["a.png", "b.webp", "more/a.png"]
    assert main([*command[:1], str(photos / "**/*.*"), *command[2:], "--gt", str(gt)]) == 0  # more/a.png is a.png too
    entries[0]["file_name"] = "c.png"
    gt.write_text(json.dumps({"images": entries}))
    assert main([*command, "--gt", str(gt)]) == 2
    assert "the image is not in the annotations" in capsys.readouterr().err


def test_an_interrupted_prediction_resumes(model, photos, tmp_path, monkeypatch):
    predictions = Detector.predictions
    done = []

    def interrupted(self, sources, *args, **options):
        for rows in predictions(self, sources, *args, **options):
            yield rows
            done.extend(n for n, _ in rows)
            if len(done) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "predictions", interrupted)
    command = ["predict", str(photos), *model, "--out", str(tmp_path / "p.jsonl"), "--batch-size", "1"]
    assert main(command) == 130 and not (tmp_path / "p.jsonl").exists()
    assert main(command) == 0
    assert sorted(done) == [0, 1] and len(list(read_predictions(tmp_path / "p.jsonl"))) == 2
