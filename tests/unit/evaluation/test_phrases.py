"""Answers to phrases: every metric against a slow reference; what is asked, skipped and refused."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from evaluation_cases import PhraseCase, annotation, categories, generated, image
from report_cases import record

from coordexp.evaluation.compare import Run, compare
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.ground_truth import ground_truth_from_records, load_ground_truth
from coordexp.evaluation.metrics import PHRASE_METRICS
from coordexp.evaluation.options import EvaluateOptions
from coordexp.evaluation.results import load_eval
from coordexp.evaluation.table_protocols import BENCHMARKS, TABLE_PROTOCOLS, Benchmark, table_row
from coordexp.geometry.boxes import iou, xywh_to_xyxy
from coordexp.records import Record
from coordexp.reporting.report import headline, losses
from coordexp.runtime.errors import DataError


def phrase(text, *annotation_ids):
    return {"text": text, "annotation_ids": list(annotation_ids)}


def small_case():
    """One image with three objects and phrases for one, several and none; one image without phrases."""
    boxes = {1: [10, 10, 100, 100], 2: [200, 10, 100, 100], 3: [10, 200, 50, 50]}
    asked = [
        phrase("left", 1),  # the best box is right, another one is wrong
        phrase("right", 2),  # right, IoU 0.6
        phrase("small", 3),  # no box
        phrase("big ones", 1, 2),  # one found, one duplicate
        phrase("a cat"),  # rejected
        phrase("a cow"),  # one false positive
        phrase("left", 2),  # the same text for another object: scored against the same answer
    ]
    case = PhraseCase([image(1) | {"phrases": asked}, image(2)], [], categories(2))
    case.annotations = [annotation(n, 1, box) for n, box in boxes.items()]
    case.detections = {
        1: [
            ("left", [10, 10, 110, 110], 0.9),
            ("left", [200, 10, 300, 110], 0.4),
            ("right", [200, 10, 300, 70], 0.8),
            ("big ones", [200, 10, 300, 110], 0.7),
            ("big ones", [202, 10, 300, 110], 0.6),
            ("a cow", [0, 0, 50, 50], 0.5),
        ]
    }
    return case


def random_case(seed):
    rng = np.random.default_rng(seed)
    case = generated(seed, images=20, lvis=False, crowds=0.0)
    own = {i["id"]: [a for a in case.annotations if a["image_id"] == i["id"]] for i in case.images}
    made = PhraseCase(case.images, case.annotations, case.categories)
    for entry in made.images:
        entry["phrases"], found = [], []
        for n in range(5):
            ids = [a["id"] for a in own[entry["id"]] if rng.random() < 0.4]
            entry["phrases"].append(phrase(f"phrase {n % 4}", *ids))
            for a in own[entry["id"]]:
                x, y, w, h = a["bbox"]
                moved = [max(0, v + float(rng.normal(0, 0.15 * w))) for v in (x, y, x + w, y + h)]
                box = [*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:])]
                if rng.random() < 0.5:
                    found.append((f"phrase {n % 4}", [float(v) for v in box], float(np.round(rng.random(), 2))))
        made.detections[entry["id"]] = found
    return made


def reference(case):
    """Every metric by its definition, one phrase at a time."""
    boxes = {a["id"]: xywh_to_xyxy(np.array(a["bbox"])) for a in case.annotations}
    best, exact, rejected, tp, predicted, targets = [], [], [], 0, 0, 0
    for entry in case.images:
        for asked in entry.get("phrases", []):
            answer = [(s, box) for desc, box, s in case.detections.get(entry["id"], []) if desc == asked["text"]]
            answer.sort(key=lambda pair: (-pair[0], pair[1][0], pair[1][1]))
            free, matched = [boxes[i] for i in asked["annotation_ids"]], 0
            for _, box in answer:
                overlaps = [iou(np.array([box]), target[None])[0, 0] for target in free]
                if overlaps and max(overlaps) >= 0.5:
                    free.pop(int(np.argmax(overlaps)))
                    matched += 1
            count = len(asked["annotation_ids"])
            exact.append(matched == count == len(answer))
            if count == 1:
                target = boxes[asked["annotation_ids"][0]][None]
                best.append(iou(np.array([answer[0][1]]), target)[0, 0] if answer else 0.0)
            elif not count:
                rejected.append(not answer)
            else:
                tp, predicted, targets = tp + matched, predicted + len(answer), targets + count
    best = np.array(best)
    return {
        "accuracy_50": (best >= 0.5).mean(),
        "accuracy_75": (best >= 0.75).mean(),
        "mean_iou": best.mean(),
        "precision_50": tp / predicted,
        "recall_50": tp / targets,
        "F1_50": 2 * tp / (predicted + targets),
        "no_target_accuracy": np.mean(rejected),
        "exact_50": np.mean(exact),
    }


def evaluated(case, folder, out=None, **options):
    predictions, annotations = case.write(folder)
    options = EvaluateOptions(bootstrap=20, **options)
    return evaluate(predictions, annotations, options, dataset="refer", split="val", out=out)


def test_an_object_that_a_phrase_names_twice_is_one_target(tmp_path):
    case = small_case()
    once = evaluated(case, tmp_path / "once").phrases.metrics
    case.images[0]["phrases"][0]["annotation_ids"] = [1, 1]
    case.images[0]["phrases"][3]["annotation_ids"] = [1, 2, 2]
    assert evaluated(case, tmp_path / "twice").phrases.metrics == once


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_a_slow_reference(seed, tmp_path):
    case = random_case(seed)
    block = evaluated(case, tmp_path).phrases
    assert block.metrics == pytest.approx(reference(case)) and list(block.metrics) == list(PHRASE_METRICS)
    for name, (low, high) in block.intervals.values.items():
        assert low <= block.metrics[name] <= high
    assert block.intervals.values["accuracy_50"][0] < block.intervals.values["accuracy_50"][1]


def test_one_several_and_no_targets_are_counted_separately(tmp_path):
    result = evaluated(small_case(), tmp_path)
    block = result.phrases
    assert block.metrics["accuracy_50"] == 0.5  # "left" and "right", but neither "small" nor the second "left"
    assert block.metrics["precision_50"] == 0.5 and block.metrics["recall_50"] == 0.5
    assert block.metrics["no_target_accuracy"] == 0.5 and block.metrics["exact_50"] == pytest.approx(2 / 7)
    rows = {row.targets: (row.phrases, row.boxes, row.true_positives, row.false_positives) for row in block.by_targets}
    assert rows == {"none": (2, 1, 0, 1), "one": (4, 5, 3, 2), "several": (1, 2, 1, 1)}
    assert (result.coco, result.lvis) == (None, None) and set(result.not_computed) == {"coco", "lvis"}
    assert result.counts.unmapped_detections == 0 and block.images == 1
    assert {example.text for example in block.best} == {"right", "a cat"}
    assert block.worst[0].text in ("left", "big ones")


def truncated_case(*phrases):
    """The small case with answers to phrases of image 1 that were truncated; without `phrases`, it is unknown which."""
    case = small_case()
    case.facts[1] = {"finish": "length"} | ({"truncated_phrases": list(phrases)} if phrases else {})
    return case


def test_a_truncated_answer_without_a_box_is_not_a_rejection_and_is_counted(tmp_path):
    block = evaluated(truncated_case("a cat", "right"), tmp_path, out=tmp_path / "eval.json").phrases
    assert block.metrics["no_target_accuracy"] == 0 and block.metrics["exact_50"] == pytest.approx(1 / 7)
    assert block.metrics["accuracy_50"] == 0.5
    assert {row.targets: row.truncated for row in block.by_targets} == {"none": 1, "one": 1, "several": 0}
    assert {example.text for example in block.best} == {"right"}
    lost = ["phrases with a truncated answer, which is wrong without a box: 2 of 7"]
    assert losses(tmp_path / "eval.json") == lost


def test_if_it_is_unknown_which_answer_was_truncated_no_phrase_of_the_image_is_rejected(tmp_path):
    block = evaluated(truncated_case(), tmp_path).phrases
    assert block.metrics["no_target_accuracy"] == 0 and sum(row.truncated for row in block.by_targets) == 7


def test_baselines_are_those_of_answers_that_ignore_the_phrase(tmp_path):
    baselines = evaluated(small_case(), tmp_path).phrases.baselines
    assert baselines["largest_object"] == 0.25  # object 1, the first of two equal ones, for four phrases
    assert baselines["random_object"] == pytest.approx(1 / 3)
    assert baselines["same_box"] is not None


def test_table_on_the_console_has_the_metrics_and_counts(tmp_path):
    evaluated(small_case(), tmp_path, out=tmp_path / "eval.json")
    lines = headline(tmp_path / "eval.json").splitlines()
    assert lines[0] == "refer val: 2 images, 7 phrases"
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["accuracy_50"][0] == "0.500" and rows["several"] == ["1", "2", "1", "1", "0", "0"]
    assert losses(tmp_path / "eval.json") == []


def test_a_detection_for_an_unknown_phrase_is_counted(tmp_path):
    case = small_case()
    case.detections[2] = [("left", [0, 0, 50, 50], 0.5)]
    evaluated(case, tmp_path, out=tmp_path / "eval.json")
    assert losses(tmp_path / "eval.json") == ["detections without a phrase that was asked: 1 of 7"]


def test_phrases_that_no_record_has_are_not_scored_but_counted(tmp_path):
    case = small_case()
    predictions, annotations = case.write(tmp_path)
    names = {c["id"]: c["name"] for c in case.categories}
    rows = [record(entry, case.annotations, names) for entry in case.images]
    rows[0]["phrases"] = [{"text": "left", "objects": [0]}, {"text": "a cat", "objects": []}]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EvaluateOptions(bootstrap=0)
    files = {"records": tmp_path / "val.jsonl", "out": tmp_path / "eval.json"}
    block = evaluate(predictions, annotations, options, dataset="refer", split="val", **files).phrases
    assert (block.phrases, block.without_record) == (3, 4)
    assert losses(tmp_path / "eval.json")[-1] == "annotated phrases without a record, which are not scored: 4"


def test_ground_truth_of_records_has_the_same_phrases(tmp_path):
    case = small_case()
    _, annotations = case.write(tmp_path)
    names = {c["id"]: c["name"] for c in case.categories}
    rows = [record(entry, case.annotations, names) for entry in case.images]
    rows[0]["phrases"] = [
        {"text": p["text"], "objects": [i - 1 for i in p["annotation_ids"]]} for p in case.images[0]["phrases"]
    ]
    records = msgspec.convert(rows, list[Record])
    file = load_ground_truth(annotations)
    made = ground_truth_from_records(records, file.categories, federated=False)
    first = file.annotation_id[0]
    assert made.phrases == [p._replace(annotation_ids=tuple(i - first for i in p.annotation_ids)) for p in file.phrases]


def test_a_phrase_without_one_of_its_annotations_is_left_out_and_counted(tmp_path):
    case = small_case()
    case.images[0]["phrases"].append(phrase("gone", 99))
    result = evaluated(case, tmp_path)
    assert result.phrases.phrases == 7
    assert result.counts.annotations_skipped == {"phrase without one of its objects": 1}


def test_answers_without_phrases_in_the_annotations_are_refused(tmp_path):
    case = small_case()
    del case.images[0]["phrases"]
    with pytest.raises(DataError, match="have no phrases"):
        evaluated(case, tmp_path)


def test_answers_to_phrases_are_not_mixed_with_others_or_compared(tmp_path):
    predictions, annotations = small_case().write(tmp_path)
    lines = predictions.read_text().splitlines()
    mixed = [lines[0], lines[1].replace('"phrases"', '"open"')]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed) + "\n")
    with pytest.raises(DataError, match="only some images were prompted with phrases"):
        evaluate(tmp_path / "mixed.jsonl", annotations, dataset="refer", split="val")
    runs = [Run(name, predictions) for name in ("a", "b")]
    with pytest.raises(DataError, match="cannot be compared"):
        compare(runs, annotations, dataset="refer", split="val")


def test_a_row_has_the_accuracy_and_says_why_it_is_not_comparable(tmp_path, monkeypatch):
    evaluated(small_case(), tmp_path, out=tmp_path / "eval.json")
    result = load_eval(tmp_path / "eval.json")
    row = table_row(result, TABLE_PROTOCOLS["refcoco"])
    assert row.values == {"Acc@0.5": 50.0}
    assert row.reasons == ["7 phrases of refer, RefCOCO val, testA or testB has 10,834, 5,657, 5,095"]
    monkeypatch.setitem(BENCHMARKS, "refcoco", Benchmark("refer", phrases=(7,)))
    assert table_row(result, TABLE_PROTOCOLS["refcoco"]).reasons == []
    assert table_row(result, TABLE_PROTOCOLS["phrases"]).values["N-acc"] == 50.0
    detection = replace(TABLE_PROTOCOLS["refcoco"], block="coco")
    assert table_row(result, detection).reasons == ["answers to phrases have no categories; see `phrases`"]
