"""Settings that a merged checkpoint carries: read, used as defaults, and announced when overridden."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
from inference_helpers import SIZES, images, read

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings, read_inference_settings
from coordexp.answers.render import PromptStyle
from coordexp.cli import main
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.detector import Detector
from coordexp.inference.import_responses import import_responses
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Predictor
from coordexp.recipe import Custom
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json, write_jsonl

RECORDED = InferenceSettings(max_blocks=15, min_blocks=1, factor=32, resize="shrink", geometry=("bbox_2d",))


@pytest.fixture
def merged(taught, tmp_path):
    """A copy of the taught checkpoint with recorded settings."""
    shutil.copytree(taught, tmp_path / "merged")
    write_json(tmp_path / "merged" / FILE_NAME, RECORDED)
    return tmp_path / "merged"


@pytest.fixture
def image_files(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(len(SIZES))]
    for path, image in zip(paths, images(), strict=True):
        image.save(path)
    return paths


def sizes_seen(monkeypatch, model, paths, **options) -> list[tuple[int, int]]:
    """Sizes of the images that the model sees."""
    seen = []

    def stream(self, requests, capacity):
        seen.extend(request.image().size for request in requests)
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "stream", stream)
        Detector(model, **options).detect(paths)
    return seen


def test_detect_uses_the_budget_and_resize_rule_of_training(merged, image_files, monkeypatch, capsys):
    assert sizes_seen(monkeypatch, merged, image_files) == SIZES  # resize: shrink keeps images within the budget
    assert "detect:" not in capsys.readouterr().err
    assert sizes_seen(monkeypatch, merged, image_files, max_blocks=15) == SIZES
    assert "detect:" not in capsys.readouterr().err


def test_an_override_is_announced(merged, image_files, monkeypatch, capsys):
    sizes = sizes_seen(monkeypatch, merged, image_files[:1], max_blocks=4, options=PredictOptions(temperature=2.0))
    assert sizes == [(64, 64)]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "max_blocks 4 overrides 15" in line]
    assert [line for line in lines if "temperature 2.0 overrides 1.0" in line]


def test_the_command_reads_the_settings(merged, image_files, monkeypatch, capsys):
    assert main(["detect", str(image_files[0]), "--model", str(merged)]) == 0
    plain = capsys.readouterr()
    assert "detect:" not in plain.err
    assert main(["detect", str(image_files[0]), "--model", str(merged), "--max-blocks", "15"]) == 0
    assert capsys.readouterr().out == plain.out
    assert main(["detect", str(image_files[0]), "--model", str(merged), "--max-blocks", "40", "--polygons"]) == 0
    err = capsys.readouterr().err
    assert "max_blocks 40 overrides 15" in err and "geometry ('bbox_2d', 'poly') overrides" in err


def test_polygons_are_allowed_if_they_were_trained(merged, image_files, monkeypatch):
    write_json(merged / FILE_NAME, msgspec.structs.replace(RECORDED, geometry=("bbox_2d", "poly"), poly_max_points=7))
    options = []
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda folder, given, *rest: options.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Detector(merged)
    assert (options[0].geometry, options[0].poly_max_points) == (("bbox_2d", "poly"), 7)


def test_without_the_file_the_recipe_and_its_records_are_used(tmp_path, capsys):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    budget = {"max_blocks": 9, "min_blocks": 4, "factor": 32, "resize": "fill"}
    write_json(folder / ".images.json", {"dataset": "shapes", "split": "train", "image_dirs": ["/x"], **budget})
    custom = msgspec.structs.replace(Custom(), json_format="compact", train_jsonl=str(tmp_path / "train.coord.jsonl"))
    manifest = {"trained": {"recipe": {"custom": msgspec.to_builtins(custom)}}}
    write_json(tmp_path / "merge_manifest.json", manifest)
    settings = settings_of(tmp_path, "detect")
    assert settings.style == PromptStyle(json_format="compact")
    assert {name: getattr(settings, name) for name in budget} == budget
    assert f"detect: {tmp_path} has no {FILE_NAME}" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert settings_of(tmp_path, "detect").max_blocks is None
    assert "the image budget of training is unknown" in capsys.readouterr().err


def test_defaults_are_announced_if_nothing_is_recorded(taught, image_files, monkeypatch, capsys):
    sizes_seen(monkeypatch, taught, image_files[:1], max_blocks=9)
    err = capsys.readouterr().err
    assert "does not record how it was trained" in err and "min_blocks 4 is a default" in err


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"max_blocks": 0}', '{"max_blocks": "9"}', '{"resize": "crop"}', '{"geometry": []}'),
        *('{"temperature": 0}', '{"temperature": NaN}', '{"style": {"colour": 1}}', '{"style": null}', "[" * 50_000),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DataError, match=FILE_NAME):
        read_inference_settings(tmp_path)


def test_keys_of_later_versions_are_ignored(tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({"max_blocks": 9, "future": [1]}))
    assert read_inference_settings(tmp_path) == InferenceSettings(max_blocks=9)


def test_parse_uses_codec_and_notation_of_the_checkpoint(merged, records, tmp_path, capsys):
    style = PromptStyle(coordinates="integer")
    write_json(merged / FILE_NAME, msgspec.structs.replace(RECORDED, emit_norm="norm1000_legacy", style=style))
    answer = '{"objects": [{"desc": "cat", "bbox_2d": [100, 200, 300, 999]}]}'
    write_jsonl(tmp_path / "responses.jsonl", [{"text": answer}] * 5)
    paths = [str(tmp_path / "responses.jsonl"), "--records", str(records), "--out", str(tmp_path / "p.jsonl")]
    assert main(["parse", *paths, "--model", str(merged)]) == 0
    box = read(tmp_path / "p.jsonl")[0].detections[0].norm
    assert box[3] == pytest.approx((SIZES[0][1] - 1) / SIZES[0][1]) and capsys.readouterr().err == ""
    import_responses(tmp_path / "responses.jsonl", records, tmp_path / "p.jsonl", "norm1000", model_dir=merged)
    assert read(tmp_path / "p.jsonl")[0].detections[0].norm[3] == 1.0
    assert "emit_norm 'norm1000' overrides 'norm1000_legacy'" in capsys.readouterr().err


def test_predict_announces_what_deviates_from_training(merged, records, tmp_path, capsys):
    shutil.copytree(records.parent, tmp_path / "data")
    provenance = tmp_path / "data" / "images" / "val"
    provenance.mkdir(parents=True)
    write_json(provenance / ".images.json", {"split": "val", "image_dirs": [], "max_blocks": 40, "resize": "shrink"})
    options = PredictOptions(max_new_tokens=5, temperature=0.5)
    predict(merged, tmp_path / "data" / records.name, tmp_path / "p.jsonl", options, PromptStyle(json_format="compact"))
    err = capsys.readouterr().err
    for deviation in ("temperature 0.5 overrides 1.0", "style.json_format 'compact'", "max_blocks of the images 40"):
        assert deviation in err
    assert "emit_norm" not in err and "resize" not in err


@pytest.mark.parametrize("given", ["RBC, WBC", " RBC ,WBC", "RBC,WBC", "RBC,WBC,RBC"])
def test_names_of_categories_are_stripped(given, taught, image_files, monkeypatch):
    asked = []
    monkeypatch.setattr(Detector, "stream", lambda self, sources, names, **options: asked.append(names) or [])
    assert main(["detect", str(image_files[0]), "--model", str(taught), "--categories", given]) == 0
    assert asked == [["RBC", "WBC"]]


@pytest.mark.parametrize("given", ["", " ", "RBC,,WBC", "RBC,"])
def test_an_empty_name_of_a_category_is_an_error(given, taught, image_files, capsys):
    assert main(["detect", str(image_files[0]), "--model", str(taught), "--categories", given]) == 2
    assert "empty name" in capsys.readouterr().err
