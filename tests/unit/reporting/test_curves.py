"""Training curves: selection of series from the log, and the loss plot."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from coordexp.reporting.curves import bin_errors, image_use, image_use_caution, losses, plot_losses, read_log, scores
from coordexp.reporting.figures import lines
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl

LOG = [{"step": i, "loss": 5 / i, "l1": 1 / i, "learning_rate": 1e-3} for i in range(1, 60)]


def test_losses_are_plotted_as_a_png(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in [*LOG, {"step": 60, "train_runtime": 3.0}, {"note": 1}]))
    assert [s.name for s in losses(read_log(log))] == ["loss", "l1"]
    plot_losses(log, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.format == "PNG" and image.size[0] == 1200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_a_matplotlibrc_of_the_working_folder_changes_no_figure(tmp_path):
    import matplotlib

    write_jsonl(tmp_path / "log.jsonl", LOG)
    drawn = []
    for style in ({}, {"font.size": 40, "axes.facecolor": "red", "text.usetex": True, "svg.fonttype": "none"}):
        with matplotlib.rc_context(style):
            plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
            page = lines("loss", losses(read_log(tmp_path / "log.jsonl")), x_label="step", y_label="loss")
            drawn.append(((tmp_path / "loss.png").read_bytes(), page))
    assert drawn[0] == drawn[1]


def test_empty_training_log_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"note": 1}\n')
    with pytest.raises(DataError, match="no line with a step"):
        plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")


def test_losses_scores_and_bin_errors_are_separate_series(tmp_path):
    rows = [
        {"step": s, "loss": 5.0 - s, "ce": 4.0 - s, "bin_error_p90": 300.0, "coord_probability": 0.5} for s in (1, 2)
    ]
    write_jsonl(tmp_path / "log.jsonl", rows)
    log = read_log(tmp_path / "log.jsonl")
    assert [s.name for s in losses(log)] == ["loss", "ce"]
    assert [s.name for s in bin_errors(log)] == ["bin_error_p90"]
    assert [s.name for s in scores(log)] == ["coord_probability"]


def test_detection_metrics_during_training_are_scores(tmp_path):
    rows = [{"step": 2, "loss": 3.0}, {"step": 2, "eval_AP": 0.1, "eval_F1_micro": 0.2, "eval_detection_runtime": 9.0}]
    rows += [{"step": 2, "eval_near_duplicates_per_image": 0.5}]
    rows += [{"step": 4, "loss": 2.0}, {"step": 4, "eval_AP": 0.3, "eval_F1_micro": 0.4, "eval_detection_runtime": 8.0}]
    write_jsonl(tmp_path / "log.jsonl", rows)
    log = read_log(tmp_path / "log.jsonl")
    assert [(s.name, s.x, s.y) for s in scores(log)] == [
        ("eval_AP", [2, 4], [0.1, 0.3]),
        ("eval_F1_micro", [2, 4], [0.2, 0.4]),
    ]
    assert [s.name for s in losses(log)] == ["loss"]


def test_image_use_has_a_plot_of_its_own_and_training_images_are_among_the_scores(tmp_path):
    use = {"eval_logprob_right_image": -4.0, "eval_logprob_other_image": -4.05, "eval_image_gain": 0.05}
    row = {"step": 2, "eval_train_AP": 0.5, "eval_recall_50": 0.4, "eval_train_recall_50": 0.6, **use}
    write_jsonl(tmp_path / "log.jsonl", [{"step": 2, "loss": 3.0}, row])
    log = read_log(tmp_path / "log.jsonl")
    assert [s.name for s in losses(log)] == ["loss"]
    assert [s.name for s in scores(log)] == ["eval_recall_50", "eval_train_AP", "eval_train_recall_50"]
    assert [s.name for s in image_use(log)] == ["eval_logprob_other_image", "eval_logprob_right_image"]
    assert "0.05 nats" in image_use_caution(log)
    write_jsonl(tmp_path / "log.jsonl", [row, {"step": 4, "eval_image_gain": 0.5}])  # the last evaluation counts
    assert image_use_caution(read_log(tmp_path / "log.jsonl")) is None
