"""The ablation's summary: means, spread, and differences paired by seed, from files as the rules leave them."""

from pathlib import Path

import msgspec
import pytest

from coordexp.config.sweeps import Ablation, Cell
from coordexp.records import Detection, Prediction
from coordexp.reporting.sweep_page import spread, summarise, write_page
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import sha256_file, write_json, write_jsonl, write_text

REPOSITORY = Path(__file__).resolve().parents[3]
SECTION = {
    "base": {"model": "tiny", "run": "shapes_9"},
    "arms": ["text", "tokens", "soft"],
    "seeds": [1, 2],
    "decode": ["argmax", "expectation"],
    "starts": ["base"],
    "overrides": {"base": {}},
}
AP = {("text", 1): 0.2, ("text", 2): 0.4, ("tokens", 1): 0.3, ("tokens", 2): 0.5, ("soft", 1): 0.6, ("soft", 2): 0.6}


def write_cell(cell: Cell, arms: Path) -> None:
    ap = AP[cell.arm, cell.seed]
    block = {
        "metrics": {"AP": ap, "AP50": ap, "AP75": ap},
        "ap_by_iou": {"0.95": ap / 2},
        "f1": {"all_predictions": {"micro": {"0.50": ap}}},
        "by_density": [{"objects_per_image": "1-2", "objects": 3, "recall_50": ap}],
    }
    box = Detection(desc="red square", norm=[0.1, 0.1, 0.2, 0.2], score=0.5)
    prediction = Prediction(
        image_id=1, source_width=8, source_height=8, protocol="open", finish="stop", text="", detections=[box] * 2,
        problems={"duplicates": 1}, token_ids=[1] * 30, token_logprobs=[0.0] * 30,
    )  # fmt: skip
    predictions = arms / cell.name / "1-of-1.jsonl"
    dropped = msgspec.structs.replace(prediction, problems={"duplicates_dropped": 1})
    write_jsonl(predictions, [prediction, dropped])
    inputs = {"predictions": {"sha256": sha256_file(predictions)}}
    write_json(arms / f"{cell.name}.json", {"coco": block, "lvis": None, "inputs": inputs})
    write_json(arms / cell.trained / "train/adapter/train_manifest.json", {"step": 10})
    write_text(arms / cell.trained / "benchmarks/train.tsv", "s\tcpu_time\n9.0\t5.0\n")


@pytest.fixture
def summary(tmp_path):
    ablation, arms = Ablation(SECTION, REPOSITORY), tmp_path / "crowds_9"
    for cell in ablation.cells():
        write_cell(cell, arms)
    for seed in SECTION["seeds"]:
        write_text(tmp_path / f"base-{seed}/benchmarks/train.tsv", "s\tcpu_time\n90.0\t60.0\n")
    return summarise(ablation, arms, tmp_path, run="crowds_9")


def test_predictions_that_lost_a_line_are_named(tmp_path):
    ablation = Ablation({**SECTION, "arms": ["tokens"], "seeds": [1], "decode": ["argmax"]}, REPOSITORY)
    (cell,) = ablation.cells()
    write_cell(cell, tmp_path)
    predictions = tmp_path / cell.name / "1-of-1.jsonl"
    predictions.write_bytes(predictions.read_bytes().splitlines()[0])
    with pytest.raises(DataError, match=r"1-of-1\.jsonl: not the file that eval.json was made from"):
        summarise(ablation, tmp_path, tmp_path, run="crowds_9")


@pytest.mark.parametrize("table", ["", "s\tcpu", "s\tcpu_time\n", "s\tcpu_time\n9.0\t", "s\tcpu_time\n9.0\t-\n"])
def test_a_benchmark_that_is_cut_off_is_named(tmp_path, table):
    ablation = Ablation({**SECTION, "arms": ["tokens"], "seeds": [1], "decode": ["argmax"]}, REPOSITORY)
    (cell,) = ablation.cells()
    write_cell(cell, tmp_path)
    write_text(tmp_path / cell.trained / "benchmarks/train.tsv", table)
    with pytest.raises(DataError, match=r"base/tokens-1/benchmarks/train\.tsv: .*cpu_time"):
        summarise(ablation, tmp_path, tmp_path, run="crowds_9")


def test_arms_from_random_weights_need_no_bases(tmp_path):
    section = {**SECTION, "starts": ["scratch"], "overrides": {"scratch": {}}}
    ablation, arms = Ablation(section, REPOSITORY), tmp_path / "crowds_9"
    for cell in ablation.cells():
        write_cell(cell, arms)
    summary = summarise(ablation, arms, tmp_path, run="crowds_9")
    assert summary["base"] is None
    write_page(summary, tmp_path / "page.html")
    assert "The base learns" not in (tmp_path / "page.html").read_text()


def test_text_integers_are_decoded_once():
    cells = Ablation(SECTION, REPOSITORY).cells()
    assert [c.decode for c in cells if c.arm == "text"] == ["argmax", "argmax"]
    assert sum(c.arm == "tokens" for c in cells) == 4


def test_a_row_is_the_mean_over_seeds(summary):
    row = next(r for r in summary["rows"] if (r["arm"], r["decode"]) == ("tokens", "argmax"))
    assert row["numbers"]["AP"]["mean"] == pytest.approx(0.4)
    assert row["numbers"]["AP"]["sd"] == pytest.approx(0.02**0.5)
    assert row["numbers"]["tokens_per_object"]["mean"] == 15
    assert row["numbers"]["duplicates"]["mean"] == 1
    assert row["numbers"]["cpu_seconds_per_step"]["mean"] == 0.5
    assert row["numbers"]["steps"]["mean"] == 10
    assert summary["base"]["cpu_seconds"]["mean"] == 60


def test_differences_are_paired_by_seed(summary):
    found = {(d["arm"], d["minus"], d["decode"]): d["numbers"]["AP"] for d in summary["differences"]}
    assert found["tokens", "text", "expectation"]["values"] == pytest.approx([0.1, 0.1])
    assert found["tokens", "text", "expectation"]["sd"] == pytest.approx(0, abs=1e-9)
    assert found["soft", "tokens", "argmax"]["values"] == pytest.approx([0.3, 0.1])


def test_a_number_that_a_seed_lacks_has_no_mean():
    assert spread([0.5, None])["mean"] is None


def test_the_page_shows_every_arm(summary, tmp_path):
    write_page(summary, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(f"<td>{arm}</td>" in page for arm in SECTION["arms"]) and "<svg" in page


def test_a_page_of_text_integers_alone(summary, tmp_path):
    summary["arms"] = {name: {**about, "tokens": False} for name, about in summary["arms"].items()}
    write_page(summary, tmp_path / "page.html")
    assert "minus that of `text`" in (tmp_path / "page.html").read_text()
