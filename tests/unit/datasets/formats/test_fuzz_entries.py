"""Mutated files of the formats with one entry per image: read, counted, or refused with an error for users."""

import json

import pytest
from format_cases import image_folder, json_lines
from format_fuzz import CASES_IN_CI, fuzz

LINES = {"annotations": {"train": "train.jsonl"}, "image_dirs": {"train": ["images"]}}
BOXES = [[1, 2, 30, 40], [5.5, 6, 50, 60.25]]
NAMES = ["a.jpg", "sub/b.jpg", "c.png"]


def odvg(root):
    image_folder(root)
    (root / "labels.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
    instances = [{"bbox": box, "label": n, "category": ("cat", "dog")[n]} for n, box in enumerate(BOXES)]
    lines = [{"filename": n, "width": 160, "height": 120, "detection": {"instances": instances}} for n in NAMES]
    (root / "train.jsonl").write_bytes(json_lines(*lines))
    return {"format": "odvg", "label_map": "labels.json", **LINES}


def odvg_grounding(root):
    image_folder(root)
    regions = [{"bbox": BOXES, "phrase": "two cats"}, {"bbox": BOXES[0], "phrase": "a dog"}]
    grounding = {"caption": "two cats and a dog", "regions": regions}
    lines = [{"filename": n, "width": 160, "height": 120, "grounding": grounding} for n in NAMES]
    (root / "train.jsonl").write_bytes(json_lines(*lines))
    return {"format": "odvg", "repeated_images": "merge", **LINES}


def odvg_phrases(root):
    return {**odvg_grounding(root), "grounding": "phrases"}


def refcoco(root):
    image_folder(root)
    sizes = {"a.jpg": (160, 120), "sub/b.jpg": (200, 100), "c.png": (64, 64)}
    images = [{"id": n, "file_name": f, "width": w, "height": h} for n, (f, (w, h)) in enumerate(sizes.items())]
    pairs = [(n, box) for n in range(len(images)) for box in ([1, 2, 30, 40], [5.5, 6, 50, 40.25])]
    annotations = [{"id": k, "image_id": n, "category_id": 1, "bbox": box} for k, (n, box) in enumerate(pairs)]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (root / "instances.json").write_text(json.dumps(instances, indent=1))
    refs = [
        {"image_id": n, "ann_id": ids, "split": "train", "sentences": [{"sent": f"cat {n}"}, {"sent": "it"}]}
        for n, ids in enumerate((0, [2, 3], [-1]))
    ]
    (root / "refs.json").write_text(json.dumps(refs, indent=1))
    return {"format": "refcoco", "refs": "refs.json", "splits": {"train": "train"}, "image_dirs": LINES["image_dirs"]}


def ms_swift(root):
    image_folder(root)
    messages = [{"role": "user", "content": "Find <ref-object>."}, {"role": "assistant", "content": "<bbox><bbox>"}]
    objects = {"ref": ["cat"], "bbox": BOXES, "bbox_type": "real"}
    lines = [{"messages": messages, "images": [n], "objects": objects} for n in NAMES]
    (root / "train.jsonl").write_bytes(json_lines(*lines))
    return {"format": "ms_swift", **LINES}


def qwen(root):
    image_folder(root)
    answer = json.dumps([{"bbox_2d": box, "label": "cat"} for box in BOXES])
    entries = [{"image": n, "conversations": [{"from": "gpt", "value": answer}]} for n in NAMES]
    (root / "train.json").write_text(json.dumps(entries, indent=1))
    return {"format": "qwen", "box_unit": "norm1000", **LINES, "annotations": {"train": "train.json"}}


def imagefolder(root):
    image_folder(root)
    rows = [{"file_name": n, "objects": {"bbox": BOXES, "categories": [0, 1]}} for n in NAMES]
    (root / "images" / "metadata.jsonl").write_bytes(json_lines(*rows))
    return {"format": "imagefolder", "metadata": {"train": "images/metadata.jsonl"}, "categories": ["cat", "dog"]}


def imagefolder_csv(root):
    image_folder(root)
    objects = json.dumps({"bbox": BOXES, "categories": ["cat", "dog"]}).replace('"', '""')
    text = "".join(f'{n},"{objects}"\r\n' for n in NAMES)
    (root / "images" / "metadata.csv").write_text(f"file_name,objects\r\n{text}")
    return {"format": "imagefolder", "metadata": {"train": "images/metadata.csv"}}


FORMATS = [odvg, odvg_grounding, odvg_phrases, refcoco, ms_swift, qwen, imagefolder, imagefolder_csv]


@pytest.mark.parametrize("make", FORMATS)
def test_mutated_files_give_no_traceback(make, tmp_path):
    outcomes = fuzz(make, tmp_path, CASES_IN_CI // 2)
    assert outcomes["read"] + outcomes["skipped"] > 0 and outcomes["refused"] > 0, outcomes


@pytest.mark.soak
@pytest.mark.parametrize("make", FORMATS)
def test_five_hundred_mutated_files_give_no_traceback(make, tmp_path):
    fuzz(make, tmp_path, 500, seed=1)
