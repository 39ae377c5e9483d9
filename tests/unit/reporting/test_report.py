"""The report page: what it shows, that it is self-contained, and its errors."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from evaluation_cases import generated
from report_cases import report_inputs

from coordexp.evaluation.results import load_eval
from coordexp.reporting import report
from coordexp.reporting.report import headline, write_report
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    case = generated(0, lvis=True)
    case.detections[5].append(("odd <b>thing</b>", [10, 10, 90, 90], 0.99))
    files = report_inputs(case, folder)
    write_report(folder / "report.html", **files)
    return folder, files, (folder / "report.html").read_text()


def test_page_is_self_contained(written):
    _, _, page = written
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert not re.search(r"https?://", page)
    assert "@import" not in page and "url(" not in page


def test_metrics_on_the_page_are_those_of_eval_json(written):
    folder, _, page = written
    result = json.loads((folder / "eval.json").read_text())
    for name in ("coco", "lvis"):
        assert f"<b>{result[name]['metrics']['AP']:.3f}</b>" in page
        assert f"{result[name]['f1']['prompted_only']['macro']['0.95']:.3f}" in page
    for entry in result["inputs"].values():
        assert entry["sha256"] in page


def test_gallery_shows_images_with_ground_truth_and_predictions(written):
    _, _, page = written
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(uris) == 6
    assert all(base64.b64decode(uri).startswith(b"\xff\xd8") for uri in uris)
    for kind in ("matched", "missed", "correct", "wrong"):
        assert f'class="shape {kind}"' in page
    for heading in ("Best", "Worst", "Most confident errors"):
        assert f"<h3>{heading}</h3>" in page


def test_boxes_drawn_agree_with_eval_json(written):
    folder, _, page = written
    examples = load_eval(folder / "eval.json").examples
    captions = dict(re.findall(r'alt="Image (\d+): (\d+ correct, \d+ wrong, \d+ of \d+) missed', page))
    known = {str(row.image_id): row for row in examples.best + examples.worst}
    shown = [image_id for image_id in captions if image_id in known]
    assert len(shown) >= 4
    for image_id in shown:
        row = known[image_id]
        missed = row.objects - row.true_positives
        expected = f"{row.true_positives} correct, {row.false_positives} wrong, {missed} of {row.objects}"
        assert captions[image_id] == expected


def test_text_of_the_model_and_the_user_is_escaped(written):
    _, _, page = written
    assert "<b>thing</b>" not in page and "odd &lt;b&gt;thing" in page
    assert "<script>alert" not in page


def test_headline_shows_every_metric_of_every_protocol(written):
    folder, *_ = written
    result = load_eval(folder / "eval.json")
    rows = {line.split()[0]: line.split()[1:] for line in headline(folder / "eval.json").splitlines()[2:]}
    assert rows.keys() == result.coco.metrics.keys() | result.lvis.metrics.keys()
    assert rows["AP"] == [f"{block.metrics['AP']:.3f}" for block in (result.coco, result.lvis)]


def test_same_inputs_give_the_same_bytes(written):
    folder, files, page = written
    write_report(folder / "again.html", **files)
    assert (folder / "again.html").read_text() == page


def test_a_model_that_barely_uses_the_image_is_reported(written):
    folder, files, page = written
    row = {"step": 4, "eval_AP": 0.2, "eval_train_AP": 0.3, "eval_logprob_right_image": -4.0, "eval_image_gain": 0.02}
    write_jsonl(folder / "log.jsonl", [{"step": 2, "loss": 3.0}, row | {"eval_answer_agreement": 0.95}])
    write_report(folder / "unused.html", **files | {"train_log": folder / "log.jsonl", "num_examples": 0})
    shown = (folder / "unused.html").read_text()
    assert "The model barely uses the image: the right image adds only 0.02 nats per coordinate and 95% of" in shown
    assert "barely uses the image" not in page


def test_run_without_training_log_or_images(written):
    folder, files, _ = written
    write_report(folder / "small.html", **files | {"train_log": None, "num_examples": 0})
    page = (folder / "small.html").read_text()
    assert 'id="training"' not in page and "data:image" not in page and 'id="metrics"' in page


def test_run_without_detections(tmp_path):
    case = generated(1, lvis=False)
    case.detections = {}
    write_report(tmp_path / "report.html", **report_inputs(case, tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<b>0.000</b>" in page and "LVIS AP" not in page and "no judged detection" in page


def test_other_predictions_are_refused(written):
    folder, files, _ = written
    other = folder / "other.jsonl"
    other.write_text(files["predictions"].read_text() + "\n")
    with pytest.raises(DataError, match=r"not the file that eval\.json was computed from"):
        write_report(folder / "never.html", **files | {"predictions": other})
    assert not (folder / "never.html").exists()


def test_missing_image_is_named(tmp_path):
    files = report_inputs(generated(2, lvis=True), tmp_path)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"images/\d+\.jpg: image cannot be read"):
        write_report(tmp_path / "report.html", **files)


def test_eval_json_of_another_version_is_refused(written):
    folder, files, _ = written
    old = json.loads(files["eval_json"].read_text()) | {"schema_version": 0}
    (folder / "old.json").write_text(json.dumps(old))
    with pytest.raises(DataError, match=r"schema_version"):
        write_report(folder / "never.html", **files | {"eval_json": folder / "old.json"})


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast():
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("@media", 2)[:2])
    for name in ("ink", "soft", "accent", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(light[name], light["paper"]) >= 4.5, name
        assert contrast(dark[name], dark["paper"]) >= 4.5, name
    assert contrast(light["soft"], light["band"]) >= 4.5 and contrast(dark["soft"], dark["band"]) >= 4.5
    plates = re.findall(r"\.plate \{ fill: (?:var\(--(\w+)\)|(#\w{6})); \}", css)
    assert len(plates) == 5
    for name, colour in plates:
        assert contrast(colour or light[name], "#ffffff") >= 4.5, name or colour


def test_page_has_no_absolute_path(tmp_path, monkeypatch):
    files = report_inputs(generated(0, lvis=False, images=3), tmp_path)
    home = str(Path.home())
    recipe = {"model": f"{home}/models/base", "resume": "/scratch/jdoe/run 7/adapter"}
    files["provenance"] = {
        "training": {"step": 4, "best": None, "recipe": recipe},
        f"{home}/key": [f"--out={home}/out", f"{Path.cwd()}/results/a", "read /data/jdoe/a.json: file:///u/jdoe/x"],
        "url": "https://host.org/jdoe2/x",
    }
    write_report(tmp_path / "report.html", **files)
    page = (tmp_path / "report.html").read_text()
    assert "<pre>not recorded</pre>" in page and "<pre>null</pre>" not in page  # predictions without a manifest
    assert "Checkpoint: step 4, the last one of the run; no checkpoint was selected. The results are on val." in page
    for leak in (f"{home}/", "/scratch", "jdoe/", str(tmp_path), str(Path.cwd())):
        assert leak not in page, leak
    assert "results/a" in page and ".../adapter" in page and "https://host.org/jdoe2/x" in page
