"""The main job on generated shapes, from download to report, by real Snakemake and real ms-swift."""

import getpass
import json
import re
import zipfile
from pathlib import Path

from running import REPOSITORY

from coordexp.records import Prediction, read_records
from coordexp.runtime.io import read_json, read_jsonl

RUN = "results/shapes_9"
TARGETS = (f"{RUN}/eval.json", f"{RUN}/report.html")


def test_every_stage_left_its_output(finished):
    for name in (
        "resources/shapes/train.source.json",
        "results/models/tiny-coordexp/coord_tokens.json",
        f"{RUN}/data/val_tiny.coord.jsonl",
        f"{RUN}/train/adapter/train_manifest.json",
        f"{RUN}/train/loss.png",
        str(next(finished.path(f"{RUN}/train/tensorboard").rglob("events.*")).relative_to(finished.folder)),
        f"{RUN}/merged/model.safetensors",
        f"{RUN}/eval/predictions.jsonl",
        *TARGETS,
    ):
        assert finished.path(name).stat().st_size > 0, name


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.planned(*TARGETS) == {}


def test_pixel_and_token_files_are_the_same_objects(finished):
    pixel = list(read_records(finished.path(f"{RUN}/data/val.jsonl"), "pixel"))
    token = list(read_records(finished.path(f"{RUN}/data/val.coord.jsonl"), "token"))
    assert [[o.norm for o in r.objects] for r in pixel] == [[o.norm for o in r.objects] for r in token]
    assert all(finished.path(f"{RUN}/data/{r.images[0]}").is_file() for r in pixel)


def test_the_tiny_files_hold_the_same_images(finished):
    ids = [
        [r.metadata.image_id for r in read_records(finished.path(f"{RUN}/data/val_tiny{end}"), space)]
        for end, space in ((".jsonl", "pixel"), (".coord.jsonl", "token"))
    ]
    assert len(ids[0]) == 4 and ids[0] == ids[1]


def test_every_term_of_the_loss_was_logged(finished):
    rows = [row for row in read_jsonl(finished.path(f"{RUN}/train/log.jsonl")) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"text", "ce", "coord_mass", "l1", "giou", "coord_accuracy", "bin_error_median"} <= set(rows[0])


def test_the_steps_and_disk_space_are_in_the_log_before_the_first_step(finished):
    text = finished.path(f"{RUN}/logs/train.log").read_text()
    lines = [line for line in re.split(r"[\r\n]+", text) if "import time:" not in line]
    [forecast] = [n for n, line in enumerate(lines) if line.startswith("train: 4 steps, about ")]
    assert forecast < min(n for n, line in enumerate(lines) if line.startswith("train: step "))
    assert forecast < 40  # nothing long, such as ms-swift's list of arguments, stands above


def test_the_merged_checkpoint_loads_without_any_plug_in(finished):
    import torch
    from transformers import AutoModelForImageTextToText

    merged = AutoModelForImageTextToText.from_pretrained(finished.path(f"{RUN}/merged"))
    base = AutoModelForImageTextToText.from_pretrained(finished.path("results/models/tiny-coordexp"))
    assert not torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_every_image_is_predicted_and_evaluated(finished):
    predictions = [json.loads(line) for line in finished.path(f"{RUN}/eval/predictions.jsonl").read_text().splitlines()]
    records = list(read_records(finished.path(f"{RUN}/data/val.jsonl"), "pixel"))
    assert [p["image_id"] for p in predictions] == [r.metadata.image_id for r in records]
    assert all(set(p) <= set(Prediction.__struct_fields__) for p in predictions)
    numbers = read_json(finished.path(f"{RUN}/eval.json"))
    assert numbers["counts"]["images"] == 6
    assert {"AP", "AP50"} <= set(numbers["coco"]["metrics"]) and {"AP", "APr"} <= set(numbers["lvis"]["metrics"])


def test_the_report_is_one_file_that_asks_for_nothing(finished):
    page = finished.path(f"{RUN}/report.html").read_text()
    assert "<svg" in page and "data:image/" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []


def test_snakemake_s_own_report_holds_the_page_and_the_loss(finished):
    finished.run("--report", "own.zip", "--", *TARGETS)
    with zipfile.ZipFile(finished.path("own.zip")) as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.namelist() if "/data/raw/" in name}
    assert names == {"report.html", "loss.png"}


def test_published_files_name_neither_the_machine_s_folders_nor_the_user(finished):
    """Report, metrics, checkpoints and data, and Snakemake's records, which travel with them."""
    private = [bytes(finished.folder), bytes(REPOSITORY), bytes(Path.home()), f"/{getpass.getuser()}/".encode()]
    folders = (RUN, "results/models", "resources", ".snakemake/metadata")
    files = [path for name in folders for path in finished.path(name).rglob("*") if path.is_file()]
    local = {"logs", "benchmarks", "checkpoints", "tensorboard", ".downloads"}
    files = [path for path in files if not local & set(path.relative_to(finished.folder).parts)]
    assert len(files) > 50
    assert not [(path.name, text) for path in files for text in private if text in path.read_bytes()]


def test_a_typo_in_the_configuration_stops_before_anything_runs(finished):
    done = finished.run("--dry-run", "--config", "predict={decoder: argmax}", check=False)
    assert done.returncode != 0
    assert "predict.decoder: unknown key, did you mean 'decode'" in done.stdout + done.stderr


def test_an_unknown_data_set_is_named(finished):
    done = finished.run("--dry-run", "results/shaeps_9/eval.json", check=False)
    assert "did you mean 'shapes'" in done.stdout + done.stderr


def test_the_real_data_sets_plan_the_whole_chain(finished):
    chain = "download convert_resize coord_tokenize tiny_split fetch_model expand_vocab train merge predict evaluate"
    for target in ("results/lvis_768/eval.json", "results/coco_1024/eval.json"):
        assert set(chain.split()) <= set(finished.planned(target))


def test_a_merged_folder_says_how_to_ask_it(finished, capsys):
    from coordexp.cli import main
    from coordexp.recipe import checkpoint_custom

    assert checkpoint_custom(finished.path(f"{RUN}/merged")).json_format == "compact"
    image = next(finished.path("resources/shapes/raw/images/val").iterdir())
    boxes = finished.path("boxes.png")
    detect = ["detect", str(image), "--model", str(finished.path(f"{RUN}/merged"))]
    assert main([*detect, "--out", str(boxes)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["image"] == str(image)
    assert boxes.stat().st_size > 0
    # The image budget is that of training, 9 tiles, without a flag; only another one is announced.
    assert "detect:" not in printed.err
    assert main([*detect, "--max-blocks", "9"]) == 0
    assert capsys.readouterr().out == printed.out
    assert main([*detect, "--max-blocks", "16"]) == 0
    assert "max_blocks 16 overrides 9" in capsys.readouterr().err
    assert "predict: " in (log := finished.path(f"{RUN}/logs/predict.eval.1-of-1.log").read_text())
    assert not re.search(r"predict: .* overrides", log)
