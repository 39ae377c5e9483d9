"""What a report shows about a run before the metrics: model, recipe, checkpoint, data, and caveats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from coordexp.evaluation.results import EvalResult
from coordexp.runtime.io import enumerate_lines, read_json

FEW_IMAGES = 50
SHOWN_ARGUMENTS = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")


class SplitCounts(NamedTuple):
    """One split of the records: numbers of images and objects, what the conversion dropped, and objects by category."""

    split: str
    images: int
    objects: int
    dropped: dict[str, int]
    clipped: int
    categories: Counter[str]


class _Object(msgspec.Struct, gc=False):
    desc: str


class _Record(msgspec.Struct, gc=False):
    objects: list[_Object] = []


def header_facts(eval_json: Path, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Run, base and recipe, as far as they are known."""
    training = provenance.get("training") or {}
    facts = {"run": eval_json.resolve().parent.name} if training else {}
    merged = eval_json.parent / "merged" / "merge_manifest.json"
    if merged.is_file():
        facts["base"] = Path(read_json(merged)["base"]["path"]).name
    recipe = training.get("recipe") or {}
    if recipe:
        arguments = {**recipe.get("tuner", {}), **recipe.get("training", {})}
        if (arguments.get("max_steps") or 0) > 0:  # which takes precedence
            arguments.pop("num_train_epochs", None)
        shown = [str(arguments.get("tuner_type", "lora"))]
        shown += [f"{name.replace('_', ' ')} {arguments[name]}" for name in SHOWN_ARGUMENTS if name in arguments]
        facts["recipe"] = ", ".join(shown)
    return facts


def cautions(result: EvalResult, provenance: Mapping[str, Any]) -> list[str]:
    """What makes the numbers of a report less meaningful than they look."""
    counts, found = result.counts, []
    if counts.subset:
        found.append(f"Subset: {counts.subset_note}.")
    if counts.answers_truncated:
        text = f"{counts.answers_truncated:,} of {counts.images:,} answers were cut off at the maximum length"
        found.append(f"{text}, so objects may be missing (predict.max_new_tokens).")
    if counts.images < FEW_IMAGES:
        found.append(f"Only {counts.images:,} images were evaluated: differences between runs may be due to chance.")
    best = (provenance.get("training") or {}).get("best")
    if best and not best["value"]:
        found.append(f"The checkpoint was chosen while {best['metric']} was zero at every evaluation during training.")
    return found


def split_counts(records_jsonl: Path) -> list[SplitCounts]:
    """Counts of the evaluated split and of the other splits beside its file, training first."""
    files = sorted(records_jsonl.parent.glob("*.stats.json"))
    splits = {file.name.removesuffix(".stats.json"): read_json(file) for file in files}
    splits.setdefault(records_jsonl.stem, {})
    order = sorted(splits, key=lambda name: (name != "train", name))
    found = []
    for name in order:
        records = records_jsonl.with_name(f"{name}.jsonl")
        if records.is_file():
            found.append(_counts(name, records, splits[name]))
    return found


def _counts(split: str, records: Path, stats: Mapping[str, Any]) -> SplitCounts:
    decode = msgspec.json.Decoder(_Record).decode
    categories: Counter[str] = Counter()
    images = 0
    for _, line in enumerate_lines(records):
        images += 1
        categories.update(obj.desc for obj in decode(line).objects)
    objects = stats.get("objects", {})
    return SplitCounts(
        split, images, categories.total(), objects.get("dropped", {}), objects.get("clipped", 0), categories
    )
