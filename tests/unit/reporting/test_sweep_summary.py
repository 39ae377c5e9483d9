"""The summary of a sweep: means, spread, paired differences and the best variant, from the files of its trials."""

import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
from evaluation_cases import Case, annotation, categories, image

from coordexp.config.sweeps import Sweep, Trial, training_trials, trials
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.results import EvalResult, write
from coordexp.records import Detection, Prediction
from coordexp.reporting.sweep_summary import Spread, page, summarise, write_summary
from coordexp.runtime.errors import ConfigError, DataError
from coordexp.runtime.io import read_json, sha256_file, write_json, write_jsonl, write_text

SWEEP = {
    "run": "crowds_9",
    "axes": {"loss": {"ce": {}, "soft": {"recipe": "soft.yaml"}}, "predict.decode": ["argmax", "local"]},
    "seeds": [1, 2],
}
AP = {("ce", 1): 0.3, ("ce", 2): 0.5, ("soft", 1): 0.6, ("soft", 2): 0.6}


@functools.cache
def evaluated() -> EvalResult:
    """The evaluation of one image with one object, which is detected."""
    case = Case([image(1)], [annotation(1, 1, [100, 100, 100, 100])], categories(1))
    case.detections = {1: [("thing0", [100, 100, 200, 200], 0.9)]}
    with tempfile.TemporaryDirectory() as folder:
        options = EvaluateOptions(bootstrap=0, protocols=("coco",))
        return evaluate(*case.write(Path(folder)), options, dataset="crowds", split="val")


def with_ap(ap: float, sha256: str) -> EvalResult:
    """`evaluated` with this AP, F1 and recall, of predictions with this hash."""
    replace, result = msgspec.structs.replace, evaluated()
    block = result.coco
    f1 = block.f1.all_predictions
    block = replace(
        block,
        metrics={"AP": ap, "AP50": ap, "AP75": ap},
        ap_by_iou={"0.95": ap / 2},
        f1=replace(block.f1, all_predictions=replace(f1, micro=replace(f1.micro, iou_50=ap))),
        by_density=[replace(row, recall_50=ap) for row in block.by_density if row.objects],
    )
    predictions = replace(result.inputs.predictions, sha256=sha256)
    counts = replace(result.counts, images=2, near_duplicates=3)
    return replace(result, counts=counts, coco=block, inputs=replace(result.inputs, predictions=predictions))


def write_trial(trial: Trial, sweep: Sweep, results) -> None:
    """The files of one finished trial; reading coordinates as `local` adds .01 to its AP."""
    run, ap = results / trial.run, AP[trial.axes["loss"], trial.seed] + 0.01 * (trial.axes["predict.decode"] == "local")
    box = Detection(desc="red square", norm=[0.1, 0.1, 0.2, 0.2], score=0.5)
    prediction = Prediction(
        image_id=1, source_width=8, source_height=8, protocol="open", finish="stop", text="", detections=[box] * 2,
        problems={"duplicates": 1}, token_ids=[1] * 30, token_logprobs=[0.0] * 30,
    )  # fmt: skip
    dropped = msgspec.structs.replace(prediction, problems={"duplicates_dropped": 1})
    predictions = run / "eval" / "predictions.jsonl"
    write_jsonl(predictions, [prediction, dropped])
    write(run / "eval.json", with_ap(ap, sha256_file(predictions)))
    trained = results / training_trials(trials("losses", sweep))[trial.run].run
    write_json(trained / "train/adapter/train_manifest.json", {"step": 10})
    write_text(trained / "benchmarks/train.tsv", "s\tcpu_time\n9.0\t5.0\n")
    for shard in (1, 2):
        write_text(run / f"benchmarks/predict.eval.{shard}-of-2.tsv", "s\tcpu_time\n4.0\t1.5\n")


def finished(results, **changes) -> Sweep:
    sweep = msgspec.convert({**SWEEP, **changes}, Sweep)
    for trial in trials("losses", sweep):
        write_trial(trial, sweep, results)
    return sweep


@pytest.fixture
def summary(tmp_path):
    return summarise("losses", finished(tmp_path), tmp_path)


def test_a_row_is_the_mean_over_seeds(summary):
    row = next(row for row in summary.rows if row.variant == "ce_argmax")
    assert row.axes == {"loss": "ce", "predict.decode": "argmax"}
    assert row.numbers["AP"].mean == pytest.approx(0.4)
    assert row.numbers["AP"].sd == pytest.approx(0.02**0.5)
    assert row.numbers["recall_1-2"].values == pytest.approx([0.3, 0.5])
    assert row.numbers["tokens_per_object"].mean == 15 and row.numbers["tokens_per_image"].mean == 30
    assert row.numbers["predict_cpu_seconds"].mean == 3
    assert row.numbers["duplicates_per_image"].mean == 1
    assert row.numbers["near_duplicates_per_image"].mean == 1.5
    assert row.numbers["cpu_seconds_per_step"].mean == 0.5
    assert row.numbers["steps"].mean == 10


def test_differences_from_the_baseline_are_paired_by_seed(summary):
    assert summary.baseline == "ce_argmax"
    found = {difference.variant: difference.numbers["AP"] for difference in summary.differences}
    assert found["soft_argmax"].values == pytest.approx([0.3, 0.1])
    assert found["ce_local"].values == pytest.approx([0.01, 0.01])
    assert found["ce_local"].sd == pytest.approx(0, abs=1e-9)
    assert "ce_argmax" not in found


def test_the_best_variant_has_the_highest_mean(summary):
    assert summary.best == "soft_local"


def test_an_unknown_metric_is_named(tmp_path):
    sweep = finished(tmp_path, metric="APP")
    with pytest.raises(ConfigError, match=r"sweeps\.losses\.metric: unknown metric 'APP', did you mean 'AP'"):
        summarise("losses", sweep, tmp_path)


def test_an_evaluation_of_another_version_is_refused(tmp_path):
    sweep = finished(tmp_path)
    write_json(tmp_path / "sweeps/losses/ce_argmax-seed1/eval.json", {"schema_version": 1, "coco": {}})
    with pytest.raises(DataError, match=r"ce_argmax-seed1/eval\.json: schema_version: not an eval\.json"):
        summarise("losses", sweep, tmp_path)


def test_a_number_that_a_seed_lacks_has_no_mean():
    assert Spread.of([0.5, None]) == Spread(None, None, [0.5, None])
    assert Spread.of([0.5]) == Spread(0.5, None, [0.5])


def test_changed_predictions_are_refused(tmp_path):
    sweep = finished(tmp_path)
    predictions = tmp_path / "sweeps/losses/ce_argmax-seed1/eval/predictions.jsonl"
    predictions.write_bytes(predictions.read_bytes().splitlines()[0])
    with pytest.raises(DataError, match=r"ce_argmax-seed1/eval/predictions\.jsonl"):
        summarise("losses", sweep, tmp_path)


@pytest.mark.parametrize("table", ["", "s\tcpu", "s\tcpu_time\n", "s\tcpu_time\n9.0\t", "s\tcpu_time\n9.0\t-\n"])
def test_a_truncated_benchmark_file_is_named(tmp_path, table):
    sweep = finished(tmp_path)
    write_text(tmp_path / "sweeps/losses/ce_argmax-seed1/benchmarks/train.tsv", table)
    with pytest.raises(DataError, match=r"ce_argmax-seed1/benchmarks/train\.tsv: .*cpu_time"):
        summarise("losses", sweep, tmp_path)


def test_summary_and_page_are_written(tmp_path):
    files = tmp_path / "summary.json", tmp_path / "summary.html"
    summary = write_summary("losses", finished(tmp_path), tmp_path, *files)
    assert read_json(files[0]) == msgspec.to_builtins(summary)
    html = files[1].read_text()
    assert all(f"<td>{row.variant}</td>" in html for row in summary.rows) and "<svg" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_sweep_of_one_variant_has_no_differences(tmp_path):
    sweep = finished(tmp_path, axes={"loss": {"ce": {}}, "predict.decode": ["argmax"]})
    assert "Differences from" in page(summarise("losses", sweep, tmp_path))
