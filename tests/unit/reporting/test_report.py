"""The report from files to one page: what it shows, that it needs nothing else, and its errors."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from evaluation_cases import HEIGHT, WIDTH, Case, generated
from PIL import Image

from coordexp.evaluation import EvaluateOptions, evaluate
from coordexp.reporting import headline, write
from coordexp.reporting import report as page_module
from coordexp.reporting.curves import bin_errors, loss_image, losses, read_log, scores
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl

LOG = [{"step": i, "loss": 5 / i, "l1": 1 / i, "learning_rate": 1e-3} for i in range(1, 60)]


def inputs(case: Case, folder: Path) -> dict:
    """Files of a run: what `write` takes, apart from the page."""
    predictions, annotations = case.write(folder)
    options = EvaluateOptions(bootstrap=3)
    evaluate(predictions, annotations, options, dataset="made", split="val", out=folder / "eval.json")
    names = {c["id"]: c["name"] for c in case.categories}
    (folder / "images").mkdir()
    with (folder / "val.jsonl").open("w") as handle:
        for image in case.images:
            Image.new("RGB", (WIDTH // 2, HEIGHT // 2), (60, 90, 60)).save(folder / "images" / f"{image['id']}.jpg")
            handle.write(json.dumps(record(image, case.annotations, names)) + "\n")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return {
        "eval_json": folder / "eval.json",
        "predictions": predictions,
        "records_jsonl": folder / "val.jsonl",
        "train_log": folder / "log.jsonl",
        "provenance": {"config": {"seed": 17}, "note": "<script>alert(1)</script>"},
        "gallery": 6,
    }


def record(image: dict, annotations: list[dict], names: dict[int, str]) -> dict:
    objects = []
    for row in annotations:
        if row["image_id"] == image["id"]:
            x, y, w, h = row["bbox"]
            norm = [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT]
            box = [v * s for v, s in zip(norm, [WIDTH // 2, HEIGHT // 2] * 2, strict=True)]
            objects.append(
                {"desc": names[row["category_id"]], "category_id": row["category_id"], "norm": norm, "bbox_2d": box}
            )
    metadata = {"image_id": image["id"], "source_width": WIDTH, "source_height": HEIGHT}
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    metadata |= {name: image[name] for name in lists if name in image}
    size = {"width": WIDTH // 2, "height": HEIGHT // 2, "coord_space": "pixel"}
    return {"images": [f"images/{image['id']}.jpg"], **size, "objects": objects, "metadata": metadata}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    case = generated(0, lvis=True)
    case.detections[5].append(("odd <b>thing</b>", [10, 10, 90, 90], 0.99))
    files = inputs(case, folder)
    write(folder / "report.html", **files)
    return folder, files, (folder / "report.html").read_text()


def test_page_needs_no_other_file(made):
    _, _, page = made
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert not re.search(r"https?://", page)
    assert "@import" not in page and "url(" not in page


def test_numbers_on_the_page_are_those_of_eval_json(made):
    folder, _, page = made
    result = json.loads((folder / "eval.json").read_text())
    for name in ("coco", "lvis"):
        assert f"<b>{result[name]['metrics']['AP']:.3f}</b>" in page
        assert f"{result[name]['f1']['prompted_only']['macro']['0.95']:.3f}" in page
    assert f"AP {result['lvis']['metrics']['AP']:.3f}" in headline(folder / "eval.json")
    for entry in result["inputs"].values():
        assert entry["sha256"] in page


def test_gallery_shows_real_images_with_truth_and_predictions(made):
    _, _, page = made
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(uris) == 6
    assert all(base64.b64decode(uri).startswith(b"\xff\xd8") for uri in uris)
    for kind in ("truth", "missed", "right", "wrong"):
        assert f'class="shape {kind}"' in page
    for heading in ("Best", "Worst", "Most confidently wrong"):
        assert f"<h3>{heading}</h3>" in page


def test_what_is_drawn_agrees_with_the_numbers(made):
    folder, _, page = made
    images = json.loads((folder / "eval.json").read_text())["images"]
    captions = dict(re.findall(r'alt="Image (\d+): (\d+ right, \d+ wrong, \d+ of \d+) missed', page))
    known = {str(row["image_id"]): row for row in images["best"] + images["worst"]}
    shown = [image_id for image_id in captions if image_id in known]
    assert len(shown) >= 4
    for image_id in shown:
        row = known[image_id]
        missed = row["objects"] - row["hits"]
        numbers = f"{row['hits']} right, {row['false_positives']} wrong, {missed} of {row['objects']}"
        assert captions[image_id] == numbers


def test_texts_from_the_model_and_the_user_are_escaped(made):
    _, _, page = made
    assert "<b>thing</b>" not in page and "odd &lt;b&gt;thing" in page
    assert "<script>alert" not in page


def test_same_inputs_give_the_same_bytes(made):
    folder, files, page = made
    write(folder / "again.html", **files)
    assert (folder / "again.html").read_text() == page


def test_run_without_training_log_or_images(made):
    folder, files, _ = made
    write(folder / "small.html", **files | {"train_log": None, "gallery": 0})
    page = (folder / "small.html").read_text()
    assert 'id="training"' not in page and "data:image" not in page and 'id="numbers"' in page


def test_nothing_predicted_still_gives_a_page(tmp_path):
    case = generated(1, lvis=False)
    case.detections = {}
    write(tmp_path / "report.html", **inputs(case, tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<b>0.000</b>" in page and "LVIS AP" not in page and "no judged detection" in page


def test_other_predictions_are_refused(made):
    folder, files, _ = made
    other = folder / "other.jsonl"
    other.write_text(files["predictions"].read_text() + "\n")
    with pytest.raises(DataError, match=r"not the file that eval\.json was made from"):
        write(folder / "never.html", **files | {"predictions": other})
    assert not (folder / "never.html").exists()


def test_missing_image_is_named(tmp_path):
    files = inputs(generated(2, lvis=True), tmp_path)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"images/\d+\.jpg: image cannot be read"):
        write(tmp_path / "report.html", **files)


def test_eval_json_of_another_version_is_refused(made):
    folder, files, _ = made
    old = json.loads(files["eval_json"].read_text()) | {"schema_version": 0}
    (folder / "old.json").write_text(json.dumps(old))
    with pytest.raises(DataError, match=r"schema_version"):
        write(folder / "never.html", **files | {"eval_json": folder / "old.json"})


def test_loss_image_is_a_png_of_the_losses(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in [*LOG, {"step": 60, "train_runtime": 3.0}, {"note": 1}]))
    assert [s.name for s in losses(read_log(log))] == ["loss", "l1"]
    loss_image(log, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.format == "PNG" and image.size[0] == 1200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_empty_training_log_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"note": 1}\n')
    with pytest.raises(DataError, match="no line with a step"):
        loss_image(tmp_path / "log.jsonl", tmp_path / "loss.png")


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast():
    css = (Path(page_module.__file__).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("@media", 2)[:2])
    for name in ("ink", "soft", "accent", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(light[name], light["paper"]) >= 4.5, name
        assert contrast(dark[name], dark["paper"]) >= 4.5, name
    assert contrast(light["soft"], light["band"]) >= 4.5 and contrast(dark["soft"], dark["band"]) >= 4.5
    plates = re.findall(r"\.plate \{ fill: (?:var\(--(\w+)\)|(#\w{6})); \}", css)
    assert len(plates) == 5
    for name, colour in plates:
        assert contrast(colour or light[name], "#ffffff") >= 4.5, name or colour


def test_errors_in_bins_have_a_plot_of_their_own(tmp_path):
    rows = [
        {"step": s, "loss": 5.0 - s, "ce": 4.0 - s, "bin_error_p90": 300.0, "mass_on_coordinates": 0.5} for s in (1, 2)
    ]
    write_jsonl(tmp_path / "log.jsonl", rows)
    log = read_log(tmp_path / "log.jsonl")
    assert [s.name for s in losses(log)] == ["loss", "ce"]
    assert [s.name for s in bin_errors(log)] == ["bin_error_p90"]
    assert [s.name for s in scores(log)] == ["mass_on_coordinates"]


def test_detection_during_training_is_a_curve_of_scores(tmp_path):
    rows = [{"step": 2, "loss": 3.0}, {"step": 2, "eval_AP": 0.1, "eval_F1": 0.2, "eval_detection_runtime": 9.0}]
    rows += [{"step": 4, "loss": 2.0}, {"step": 4, "eval_AP": 0.3, "eval_F1": 0.4, "eval_detection_runtime": 8.0}]
    write_jsonl(tmp_path / "log.jsonl", rows)
    log = read_log(tmp_path / "log.jsonl")
    assert [(s.name, s.x, s.y) for s in scores(log)] == [
        ("eval_AP", [2, 4], [0.1, 0.3]),
        ("eval_F1", [2, 4], [0.2, 0.4]),
    ]
    assert [s.name for s in losses(log)] == ["loss"]
