"""Mutated annotation files: each is refused with an error for users, or every listed item is accounted for."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

from dataset_cases import annotation_entry, balanced, convert_to, image_entry, source_of, write_dataset

from coordexp.evaluation.ground_truth import load_ground_truth
from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.io import write_json

VALUES = (
    *(None, True, False, 0, -1, 1.0, 0.5, 2**63, -(2**63) - 1, 2**31, 1e308, "", "1", "é", "x" * 300, [], {}, [[]]),
    *([1, 2], [0, 0, 0, 0], [5, 5, 1e9, 1e9], {"size": [9, 9], "counts": [1, -5, 3]}, "../a.jpg", "a\0b", "/", ".."),
)
TEXTS = (
    b"NaN",
    b"-Infinity",
    b",",
    b"{",
    b"]",
    b'"',
    b"\\",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"1e999",
    b"9" * 400,
    b"//",
)


def fuzz(folder: Path, first: int, count: int) -> dict[str, int]:
    """The number of outcomes of `count` mutations from seed `first` on; AssertionError names the seed of a failure."""
    outcomes = {"converted": 0, "refused": 0}
    boxes = [annotation_entry(k, 1 + k % 3, [5, 5, 30, 20]) for k in range(1, 7)]
    write_dataset(folder, [image_entry(i) for i in (1, 2, 3)], boxes)
    content = json.loads((folder / "annotations.json").read_text())
    for seed in range(first, first + count):
        (folder / "annotations.json").write_bytes(_mutated(content, random.Random(seed)))
        try:
            outcomes[_outcome(folder, "skip" if seed % 4 else "error")] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return outcomes


def _outcome(folder: Path, on_bad: str) -> str:
    manifest, out = folder / "train.source.json", folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    write_json(manifest, source_of(folder / "annotations.json", ["images"]))
    options = {"on_bad": on_bad, "geometry": "poly"}
    try:
        stats = convert_to(manifest, out, **options)
    except CoordExpError:
        return "refused"
    assert balanced(stats), stats
    load_ground_truth(folder / "annotations.json", on_bad)
    return "converted"


def _mutated(content: dict[str, Any], rng: random.Random) -> bytes:
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if rng.random() < 0.7:
            _change_value(content, rng)
    data = json.dumps(content).encode()
    if rng.random() < 0.4:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice((*TEXTS, data[at : at + 40])) + data[at + rng.choice((0, 0, 1, 5, 200)) :]
    return data[: rng.randrange(len(data))] if rng.random() < 0.03 else data


def _change_value(content: dict[str, Any], rng: random.Random) -> None:
    """Replace, remove or repeat a value at a random depth."""
    holder: Any = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
            holder = holder[key]
            continue
        break
    action = rng.random()
    if action < 0.7:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
