"""The extension recipes of docs/architecture.md: the example plug-ins, used through the workflow's own command."""

import csv
import json
import sqlite3
from importlib.util import find_spec

import pytest
from PIL import Image, ImageDraw
from running import REPOSITORY, Workflow

from coordexp.runtime.io import read_json, read_jsonl

PLUGINS = REPOSITORY / "docs" / "examples" / "plugins"
SHORT = {  # a training of four steps
    "extends": "config/train/full_tiny.yaml",
    "training": {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1},
}


def write_parts(folder, images_per_split=(8, 4)):
    """A dataset in the format of csv_boxes.py: one rectangle of two colours per image."""
    (folder / "images").mkdir(parents=True)
    for split, count in zip(("train", "val"), images_per_split, strict=True):
        rows = []
        for n in range(count):
            name, category = f"{split}{n}.png", ("bolt", "nut")[n % 2]
            box = (10 + n, 20, 50 + n, 70)
            image = Image.new("RGB", (96, 96), "white")
            ImageDraw.Draw(image).rectangle(box, fill="blue" if category == "bolt" else "red")
            image.save(folder / "images" / name)
            rows.append([name, category, *box])
        with (folder / f"{split}.csv").open("w", newline="") as out:
            csv.writer(out).writerows(rows)


OFFLINE = {"wandb": "wandb", "swanlab": "swanboard", "mlflow": "mlflow"}  # the package that writes to local files
TRACKERS = [name for name, package in OFFLINE.items() if find_spec(package)]  # the test environment has wandb


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A finished run with a dataset format, an answer format, a loss term, a decoding mode and a metric of plug-ins.

    It reports to the experiment trackers that are installed, in their offline modes.
    """
    folder = tmp_path_factory.mktemp("recipes")
    write_parts(folder / "parts")
    names = ("csv_boxes", "lines", "smooth_l1", "median", "detections_per_image")
    loss = {"weights": {"smooth_l1": 1.0}, "geometry_warmup": {"start": 0.0, "end": 0.0}}
    custom = {"loss": loss, "answer_format": "lines", "json_format": "standard"}
    training = SHORT["training"] | {"report_to": TRACKERS}
    if "swanlab" in TRACKERS:
        training["swanlab_mode"] = "local"
    changes = {
        "plugins": [str(PLUGINS / f"{name}.py") for name in names],
        "datasets": {
            "parts": {
                "format": "csv_boxes",
                "root": str(folder / "parts"),
                "boxes": {"train": "train.csv", "val": "val.csv"},
                "categories": ["bolt", "nut"],
            }
        },
        "runs": {"parts": {"model": "tiny", "recipe": {**SHORT, "training": training, "custom": custom}}},
        "data": {"tiny": 4},
        "predict": {"decode": "median", "max_new_tokens": 96},
        "evaluate": {"protocols": ["coco"], "bootstrap": 10},
    }
    workflow = Workflow(folder, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        workflow.run("results/parts_9/eval.json", "results/parts_9/report.html")
    return workflow


def test_records_come_from_the_dataset_format(extended):
    rows = list(read_jsonl(extended.path("results/parts_9/data/val.jsonl")))
    assert [[o["desc"] for o in row["objects"]] for row in rows] == [["bolt"], ["nut"], ["bolt"], ["nut"]]
    assert rows[0]["objects"][0]["norm"] == pytest.approx([10 / 96, 20 / 96, 50 / 96, 70 / 96])


def test_answers_are_in_the_answer_format_and_the_checkpoint_records_it(extended):
    settings = read_json(extended.path("results/parts_9/merged/coordexp_inference.json"))
    assert settings["style"]["answer_format"] == "lines"
    for row in read_jsonl(extended.path("results/parts_9/eval/predictions.jsonl")):
        *lines, end = row["text"].split("\n")
        assert end == "end" or row["finish"] == "length"
        assert len(row["detections"]) + sum(row["problems"].values()) >= len(lines)


def test_loss_term_is_trained_and_logged(extended):
    rows = [row for row in read_jsonl(extended.path("results/parts_9/train/log.jsonl")) if "loss" in row]
    assert rows and all(row["smooth_l1"] > 0 for row in rows)
    manifest = read_json(extended.path("results/parts_9/train/adapter/train_manifest.json"))
    assert manifest["recipe"]["custom"]["loss"]["weights"]["smooth_l1"] == 1.0


@pytest.mark.parametrize("name", OFFLINE)
def test_experiment_trackers_record_the_loss_beside_the_tensorboard_files(extended, name):
    if name not in TRACKERS:
        pytest.skip(f"{name} is not installed")
    folder = extended.path("results/parts_9/train")
    assert list(folder.glob("tensorboard/**/events.out.tfevents.*"))
    if name == "mlflow":
        with sqlite3.connect(folder / "mlflow.db") as database:
            steps = database.execute("SELECT step FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
        assert [step for (step,) in steps] == [1, 2, 3, 4]
    else:
        written = [file for file in folder.rglob("*") if file.is_file() and name in str(file.relative_to(folder))]
        assert any(b"train/loss" in file.read_bytes() for file in written), written


def test_decoding_mode_is_accepted_and_used(extended):
    assert extended.planned("results/parts_9/eval.json") == {}
    planned = extended.planned("results/parts_9/eval.json", options=("--config", 'predict={"decode": "local"}'))
    assert planned.keys() == {"predict", "gather", "evaluate"}
    norms = [n for row in read_jsonl(extended.path("results/parts_9/eval/predictions.jsonl")) for n in boxes(row)]
    assert all(abs(norm * 999 - round(norm * 999)) < 1e-3 for norm in norms), "a median is a whole bin"


def boxes(prediction):
    return [value for detection in prediction["detections"] for value in detection["norm"]]


def test_metric_is_in_eval_json_and_in_the_report(extended):
    result = read_json(extended.path("results/parts_9/eval.json"))
    predictions = list(read_jsonl(extended.path("results/parts_9/eval/predictions.jsonl")))
    expected = sum(len(row["detections"]) for row in predictions) / len(predictions)
    assert result["coco"]["metrics"]["detections_per_image"] == pytest.approx(expected)
    assert "detections_per_image" in extended.path("results/parts_9/report.html").read_text()


def test_unknown_names_are_rejected_without_the_plugin(extended):
    done = extended.run("--dry-run", "--config", "plugins=[]", "--", "results/parts_9/eval.json", check=False)
    assert done.returncode != 0
    assert "median" in done.stdout + done.stderr


def write_qwen2_5_vl(folder):
    """A Qwen2.5-VL with random weights, 28-pixel tiles and the tiny model's tokenizer."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from coordexp.modeling import qwen_tokenizer

    tokenizer = qwen_tokenizer.compact_tokenizer(1024)
    folder.mkdir()
    qwen_tokenizer.write_tokenizer(tokenizer, folder, 32768)
    names = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    end, turn, start, stop, image, video = (tokenizer.token_to_id(name) for name in names)
    config = Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 48, "intermediate_size": 96},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4]},
            **{"bos_token_id": end, "eos_token_id": turn, "pad_token_id": end},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48},
            **{"patch_size": 14, "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1]},
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=stop,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384},
        **{"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    video_processor = {k: v for k, v in processor.items() if k != "image_processor_type"}
    video_processor["video_processor_type"] = "Qwen2VLVideoProcessor"
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video_processor))


@pytest.fixture(scope="module")
def other_family(tmp_path_factory):
    """A run of a base model whose family is defined in a plug-in file."""
    folder = tmp_path_factory.mktemp("family")
    write_qwen2_5_vl(folder / "base")
    changes = {
        "plugins": [str(PLUGINS / "qwen2_5_vl.py")],
        "models": {"ours": {"source": "path", "path": str(folder / "base")}},
        "datasets": {"shapes": {"splits": {"train": {"count": 12, "seed": 1}, "val": {"count": 4, "seed": 2}}}},
        "data": {"factor": 28, "tiny": 4},
        "runs": {"shapes": {"model": "ours", "recipe": SHORT, "train": {"processes": 1}}},
        "predict": {"max_new_tokens": 96},
        "evaluate": {"bootstrap": 10},
    }
    workflow = Workflow(folder, changes)
    workflow.run("results/shapes_9/eval.json", "--set-resources", "train:gpu=0", "predict:gpu=0")
    return workflow


def test_model_family_is_expanded_trained_merged_and_evaluated(other_family):
    config = read_json(other_family.path("results/models/ours-coordexp/config.json"))
    assert config["model_type"] == "qwen2_5_vl"
    steps = [row["step"] for row in read_jsonl(other_family.path("results/shapes_9/train/log.jsonl")) if "loss" in row]
    assert steps == [1, 2, 3, 4]
    assert read_json(other_family.path("results/shapes_9/merged/config.json"))["model_type"] == "qwen2_5_vl"
    assert read_json(other_family.path("results/shapes_9/eval.json"))["counts"]["images"] == 4


def test_doctor_shows_a_record_of_the_family(other_family, monkeypatch, capsys):
    from coordexp.cli import main

    monkeypatch.setenv("COORDEXP_PLUGINS", str(PLUGINS / "qwen2_5_vl.py"))
    records = other_family.path("results/shapes_9/data/train.coord.jsonl")
    model = other_family.path("results/models/ours-coordexp")
    assert main(["doctor", str(records), "--index", "0", "--model", str(model)]) == 0
    assert "<|coord_" in capsys.readouterr().out
