"""The leaderboard page."""

from __future__ import annotations

import re

from evaluation_cases import generated

from coordexp.cli import main
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.table_protocols import BENCHMARKS, Benchmark
from coordexp.reporting.leaderboard import write_leaderboard


def run(folder):
    predictions, annotations = generated(0, lvis=True, noise=1).write(folder)
    predictions.write_text(predictions.read_text().replace('"open"', '"image_categories"'))
    out = folder / "eval.json"
    return out, evaluate(predictions, annotations, EvaluateOptions(bootstrap=0), dataset="coco", split="val", out=out)


def test_page_has_the_run_beside_published_figures_and_greys_what_is_not_comparable(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "coco", Benchmark("COCO val2017", 30, 6))
    out, result = run(tmp_path / "ours")
    write_leaderboard(tmp_path / "page.html", evaluated={"ours": out})
    page = (tmp_path / "page.html").read_text()
    sections = re.split(r"<section id=\"table\d\">", page)[1:]
    title = {re.search("<h2>(.*?)</h2>", section).group(1): section for section in sections}
    f1 = title["Rex-Omni and LocateAnything, COCO"]
    assert f"{100 * result.coco.f1.published.f1.iou_50:.1f}" in f1 and "52.9" in f1 and "2605.27365" in f1
    assert 'class="soft"' not in f1
    ap = title["COCO val2017, AP"]
    assert 'class="soft"><td><strong>ours' in ap and "predicted with protocol image_categories" in ap
    assert 'class="soft"><td>Moondream2' in ap and 'class="soft"><td>UFO' not in ap


def test_command_row_prints_the_row_and_the_reasons(tmp_path, capsys):
    _, result = run(tmp_path / "ours")
    assert main(["row", str(tmp_path / "ours"), "--protocol", "rex_omni"]) == 0
    printed = capsys.readouterr().out.splitlines()
    values = result.coco.f1.published.f1
    cells = " | ".join(f"{100 * value:.1f}" for value in (values.iou_50, values.iou_95, values.mean))
    assert printed[0] == "| Rex-Omni and LocateAnything, COCO | F1@0.5 | F1@0.95 | F1@mean |"
    assert "| Rex-Omni-3B | 72.0 | 15.9 | 52.9 |" in printed and f"| ours | {cells} |" in printed
    assert printed[-1] == "ours is not comparable: 30 images of coco, COCO val2017 has 5,000"
