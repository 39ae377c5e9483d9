"""Publishing a run: model card, files without local paths, checksums, upload to a hub, and loading it from there."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import yaml
from evaluation_cases import generated
from hub_server import Hub, serving
from inference_helpers import images

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings
from coordexp.answers.render import PromptStyle
from coordexp.cli import main
from coordexp.evaluation.evaluate import EvaluateOptions, evaluate
from coordexp.inference.detector import Detector
from coordexp.modeling.checksums import verify_checksums, write_checksums
from coordexp.publishing.publish import publish
from coordexp.runtime.errors import ConfigError, DownloadError, ModelError
from coordexp.runtime.io import file_mode, read_json, write_json

TOKEN = "hf_" + "x" * 30
RECIPE = {
    "tuner": {"tuner_type": "lora"},
    "training": {"learning_rate": 0.0001, "max_steps": 7, "seed": 3},
    "custom": {"loss": {"weights": {"ce": 1.0, "giou": 0.0}}},
}


@pytest.fixture
def run(taught, tmp_path) -> Path:
    """A finished run `cats_9` with everything that the card reads, whose manifest has paths of this machine."""
    folder = tmp_path / "results" / "cats_9"
    shutil.copytree(taught, folder / "merged")
    base = tmp_path / "results" / "models" / "base"
    write_json(base / "model_source.json", {"source": "hf", "repo": "Qwen/Qwen3-VL-4B-Instruct", "revision": "abc123"})
    recipe = RECIPE | {"data": {"train_jsonl": str(tmp_path / "results")}}
    write_json(folder / "merged/merge_manifest.json", {"base": {"path": str(base)}, "trained": {"recipe": recipe}})
    write_json(folder / "merged" / FILE_NAME, InferenceSettings(max_blocks=15, min_blocks=1, factor=32, resize="fill"))
    write_checksums(folder / "merged")
    names = {"names": {"1": "cat", "2": "black cat"}}
    write_json(folder / "train" / "categories.json", names)
    counts = {"images": {"written": 1200}, "objects": {"written": 3400}, "categories": 2}
    write_json(folder / "data" / "train.stats.json", {"dataset": "cats", **counts})
    predictions, annotations = generated(0, lvis=True).write(tmp_path / "evaluated")
    evaluate(
        predictions, annotations, EvaluateOptions(bootstrap=20), dataset="cats", split="val", out=folder / "eval.json"
    )
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Hub:
    """A local hub that the client of huggingface_hub uses, with an empty cache."""
    with serving() as (hub, url):
        for module in (huggingface_hub.constants, huggingface_hub.hf_api):
            if hasattr(module, "ENDPOINT"):
                monkeypatch.setattr(module, "ENDPOINT", url)
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_folder_has_a_card_checksums_and_no_local_paths(run, tmp_path):
    published = publish(run, str(tmp_path / "out"), data_licence="CC BY 4.0")
    out = tmp_path / "out"
    assert set(published.files) == {file.name for file in out.iterdir()} and published.revision is None
    assert set(verify_checksums(out)) == set(published.files) - {"README.md", "SHA256SUMS"}
    for file in out.iterdir():
        if file.suffix in (".json", ".md"):
            assert str(tmp_path) not in file.read_text(), file
    assert read_json(out / "merge_manifest.json")["base"]["path"] == ".../base"
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {file_mode()}
    [before] = Detector(run / "merged").detect(images(1))
    [after] = Detector(out).detect(images(1))
    assert before.objects == after.objects


def test_the_card_states_base_data_recipe_results_use_and_limits(run, tmp_path):
    publish(run, str(tmp_path / "out"), data_licence="CC BY 4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "apache-2.0" and metadata["base_model"] == "Qwen/Qwen3-VL-4B-Instruct"
    result = read_json(run / "eval.json")
    for row, name in zip(metadata["model-index"][0]["results"], ("coco", "lvis"), strict=True):
        assert row["dataset"]["name"] == "cats"
        assert row["metrics"][0]["value"] == round(result[name]["metrics"]["AP"], 4)
    ap, (low, high) = result["lvis"]["metrics"]["AP"], result["lvis"]["intervals"]["values"]["AP"]
    for fact in (
        *(f"{ap:.3f} [{low:.3f}, {high:.3f}]", "LVIS, 300 detections per image", "| learning rate | 0.0001 |"),
        *("1,200 images with 3,400 objects in 2 categories", "CC BY 4.0", "cat, black cat", "at revision `abc123`"),
        *("vllm serve out", 'Detector("out")', "## Limits", "at most 15 tiles", "| loss weights | ce 1 |"),
    ):
        assert fact in body, fact


def test_the_card_of_text_integers_mentions_no_coordinate_tokens(run, tmp_path):
    write_json(run / "merged" / FILE_NAME, InferenceSettings(style=PromptStyle(coordinates="integer")))
    write_checksums(run / "merged")
    publish(run, str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "whose coordinates are integers from 0 to 999" in text
    assert "<|coord_" not in text and 'skip_special_tokens": false' not in text


def test_the_licence_of_the_weights_is_published_with_them(run, tmp_path):
    publish(run, str(tmp_path / "known"))
    assert "Version 2.0, January 2004" in (tmp_path / "known/LICENSE").read_text()
    assert "apache-2.0 ([licence text](LICENSE))" in (tmp_path / "known/README.md").read_text()
    publish(run, str(tmp_path / "other"), licence="cc-by-4.0")
    assert (
        not (tmp_path / "other/LICENSE").exists()
        and "* Licence: cc-by-4.0\n" in (tmp_path / "other/README.md").read_text()
    )

    (run / "merged/LICENSE").write_text("do as you like\n")
    (run / "merged/NOTICE").write_text("by Ada\n")
    write_checksums(run / "merged")
    publish(run, str(tmp_path / "own"))
    assert (tmp_path / "own/LICENSE").read_text() == "do as you like\n" and (tmp_path / "own/NOTICE").exists()
    assert {"LICENSE", "NOTICE"} <= set(verify_checksums(tmp_path / "own"))


def test_the_transformers_example_of_the_card_runs(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    publish(run, "./out")
    images()[1].save("image.jpg")
    blocks = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), flags=re.DOTALL)
    for code in blocks:
        exec(code, {})
    assert len(blocks) == 2 and '{"objects"' in capsys.readouterr().out


def test_a_run_without_evaluation_and_records_has_a_card(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "run" / "merged")
    publish(tmp_path / "run", str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "has not been evaluated" in text and "Licence: not stated" in text and "license" not in text.split("---")[1]


def test_the_base_model_is_found_from_any_working_directory(run, tmp_path, monkeypatch):
    manifest = read_json(run / "merged" / "merge_manifest.json")
    write_json(run / "merged/merge_manifest.json", manifest | {"base": {"path": "results/models/base"}})
    write_checksums(run / "merged")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    publish(run, "./out")
    assert "license: apache-2.0" in Path("out/README.md").read_text()


def test_a_licence_that_the_card_does_not_state_is_reported(run, tmp_path, capsys):
    assert main(["publish", str(run), "--to", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "licence of the data is not stated; pass --data-license" in (printed := capsys.readouterr().err)
    assert "--license" not in printed
    (tmp_path / "results/models/base/model_source.json").unlink()
    assert main(["publish", str(run), "--to", str(tmp_path / "out"), "--data-license", "CC BY 4.0"]) == 0
    assert "licence of the model is not stated; pass --license" in (printed := capsys.readouterr().err)
    assert "--data-license" not in printed


@pytest.mark.parametrize(
    ("text", "problem"),
    [(TOKEN, "a secret"), ("see /home/ada/data/x.png", "a path of this machine"), ("/scratch/ada/x", "a path of this")],
)
def test_a_secret_or_a_local_path_is_refused(run, tmp_path, text, problem):
    config = read_json(run / "merged" / "config.json")
    (run / "merged" / "notes.txt").write_text(f"first line\n{text}\n")
    write_json(run / "merged" / "config.json", config)
    write_checksums(run / "merged")
    with pytest.raises(ConfigError, match=rf"notes\.txt:2: {problem}") as error:
        publish(run, str(tmp_path / "out"))
    assert TOKEN not in str(error.value) and not (tmp_path / "out").exists()


def test_published_to_a_hub_and_loaded_from_it(run, hub, tmp_path, capsys):
    assert main(["publish", str(run), "--to", "ada/cats"]) == 0
    printed = capsys.readouterr().out
    first = re.search(r"revision='(\w{40})'", printed)[1]
    assert hub.private["ada/cats"] and {path for _, path, _ in hub.requests if "lfs" in path}
    assert {"model.safetensors", "LICENSE"} <= set(hub.files("ada/cats"))
    [expected] = Detector(run / "merged").detect(images(1))
    for revision in (first, None):
        [found] = Detector("ada/cats", revision=revision).detect(images(1))
        assert found.objects == expected.objects

    shutil.copy(run / "merged/config.json", run / "merged/old.json")
    write_checksums(run / "merged")
    assert publish(run, "ada/cats").revision != first and "old.json" in hub.files("ada/cats")
    (run / "merged/old.json").unlink()
    write_checksums(run / "merged")
    publish(run, "ada/cats")
    assert "old.json" not in hub.files("ada/cats") and ".gitattributes" in hub.files("ada/cats")
    with pytest.raises(ModelError, match=r"none/such.*cannot be downloaded"):
        Detector("none/such")


def test_a_changed_file_on_the_hub_is_an_error_and_an_edited_card_is_not(run, hub):
    publish(run, "ada/cats")
    hub.files("ada/cats")["README.md"] += b"more"
    Detector("ada/cats", lazy=True)
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    hub.files("ada/cats")["config.json"] += b" "
    with pytest.raises(ModelError, match=r"config\.json: sha256: the file is damaged"):
        Detector("ada/cats", lazy=True)


def test_a_dry_run_writes_and_uploads_nothing(run, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for to in ("ada/cats", "./out"):
        assert main(["publish", str(run), "--to", to, "--dry-run"]) == 0
        assert "README.md" in (printed := capsys.readouterr().out) and "nothing was written" in printed
    assert not hub.requests and not Path("out").exists()


def test_a_refused_upload_says_what_to_do(run, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(DownloadError, match=r"cannot upload to the hub.*\n.*HF_TOKEN"):
        publish(run, "ada/cats")


def test_only_a_finished_run_and_a_new_folder_are_accepted(run, tmp_path):
    with pytest.raises(ConfigError, match="no merged checkpoint"):
        publish(tmp_path, str(tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        publish(run, str(tmp_path / "full"))
    assert json.loads((run / "train/categories.json").read_text())
