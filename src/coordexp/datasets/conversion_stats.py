"""Counts of a conversion: every listed image and object is written, or dropped for a named reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, MutableSequence, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordexp.datasets.annotation_index import AnnotationIndex
from coordexp.datasets.duplicate_images import described
from coordexp.datasets.objects import GOOD_IOU, SIZES, SkippedItem
from coordexp.datasets.source import Source
from coordexp.runtime.errors import LISTED_PROBLEMS, DataError, listed, located


class ConversionCounts(msgspec.Struct):
    """Counts of one chunk, or of all of them.

    undecidable: names of images whose size does not show their EXIF convention. keys: content keys of the written
    images, in order (see `duplicate_images`). problems: bad items, which are errors.
    """

    counts: Counter = msgspec.field(default_factory=Counter)
    objects: Counter = msgspec.field(default_factory=Counter)
    skipped: list[SkippedItem] = []
    undecidable: list[str] = []
    keys: MutableSequence[int] = []
    problems: list[SkippedItem] = []

    @classmethod
    def from_json(cls, data: bytes) -> ConversionCounts:
        """Counts that an earlier run stored."""
        raw = msgspec.json.decode(data)
        skipped = msgspec.convert(raw["skipped"], list[SkippedItem])
        return cls(Counter(raw["counts"]), Counter(raw["objects"]), skipped, raw["undecidable"], raw["keys"])

    def add(self, other: ConversionCounts) -> None:
        """Add the counts of another chunk."""
        self.counts.update(other.counts)
        self.objects.update(other.objects)
        self.skipped += other.skipped
        self.undecidable += other.undecidable
        self.keys.extend(other.keys)
        self.problems += other.problems

    def drop_listed(self, item: SkippedItem) -> None:
        """Count an item that is listed, but does not reach the conversion."""
        plural = {"image": "images", "phrase": "phrases"}.get(item.kind, "objects")
        self.counts[f"{plural} listed"] += 1
        self.counts[f"{plural} dropped:{item.reason}"] += 1
        self.skipped.append(item)


def bad_input(items: Sequence[SkippedItem], annotation_file: str | Path) -> DataError:
    """The error for items that `on_bad: skip` would leave out: their number, and the first LISTED_PROBLEMS of them."""
    fix = "correct the data, or set data.on_bad: skip to leave such items out and list them in the statistics"
    if len(items) == 1:
        where, problem = _described(items[0])
        return DataError(located(problem, file=annotation_file, field=where, fix=fix))
    return DataError(located(listed([": ".join(_described(item)) for item in items]), file=annotation_file, fix=fix))


def _described(item: SkippedItem) -> tuple[str, str]:
    """(the item's ids and file, its problem)."""
    problem = f"{item.reason}: {item.detail}" if item.detail else item.reason
    ids = [f"image {item.image_id!r}"] if item.image_id is not None else []
    ids += [f"annotation {item.annotation_id!r}"] if item.annotation_id is not None else []
    name = f" ({item.file})" if item.file else ""
    return (", ".join(ids) or item.kind) + name, problem


def unusable_elements(index: AnnotationIndex) -> list[SkippedItem]:
    """The elements that belong to no image."""
    items = []
    for field, element in index.invalid:
        kind = "image" if field == "images" else "annotation"
        reason = _reason(element.problem)
        detail = "" if reason == element.problem else element.problem
        items.append(
            SkippedItem(kind, reason, element.image_id, element.id if kind == "annotation" else None, "", detail)
        )
    return items


def skipped_lines(index: AnnotationIndex) -> list[SkippedItem]:
    """What the dataset's format has left out."""
    return [SkippedItem(s.kind, s.reason, file=s.file, detail=s.detail, line=s.line) for s in index.skipped]


def summary(totals: ConversionCounts, source: Source, categories: int) -> dict[str, Any]:
    """The statistics file: `listed = written + sum(dropped)`, for images and for objects."""
    counts, objects = totals.counts, totals.objects
    blocks = {int(k.split(":")[1]): n for k, n in counts.items() if k.startswith("blocks:")}
    total = sum(blocks.values())
    out = {
        "dataset": source.dataset,
        "split": source.split,
        "annotations_sha256": source.annotations_sha256,
        "categories": categories,
        "images": {
            "listed": counts["images listed"],
            "written": counts["images written"],
            "without_objects": counts["images without objects"],
            "dropped": _with_prefix(counts, "images dropped:"),
        },
        "objects": {
            "listed": counts["objects listed"],
            "written": objects["written"],
            "clipped": objects["clipped"],
            "dropped": _with_prefix(counts, "objects dropped:"),
            **({"under_one_pixel": objects["under one pixel"]} if objects["under one pixel"] else {}),
        },
        "blocks": {
            "mean": sum(k * n for k, n in blocks.items()) / total if total else 0.0,
            "max": max(blocks, default=0),
        },
        "round_trip": _round_trip(objects),
    }
    if objects["polygons"] or any(k.startswith("poly:") for k in objects):
        out["polygons"] = _polygons(objects)
    if counts["phrases listed"]:
        out["phrases"] = {
            "listed": counts["phrases listed"],
            "written": counts["phrases written"],
            "without_objects": counts["phrases without objects"],
            "dropped": _with_prefix(counts, "phrases dropped:"),
        }
    if conventions := _with_prefix(counts, "exif:"):
        out["exif"] = conventions | {"undecidable_images": totals.undecidable}
    return out | {"skipped": [msgspec.to_builtins(item) for item in totals.skipped]}


def check_not_emptied(statistics: dict[str, Any], annotation_file: Path) -> None:
    """DataError if every object was dropped."""
    objects = statistics["objects"]
    if objects["listed"] and not objects["written"]:
        problem, fix = "no object could be used", "correct the problems counted under `dropped`"
        if set(objects["dropped"]) == {"crowd"}:
            problem = f"all {objects['listed']:,} objects are crowds, which are left out"
            fix = "set data.crowd: keep, or correct `iscrowd`"
        raise DataError(located(problem, file=annotation_file, found=objects["dropped"], fix=fix))


def notices(statistics: dict[str, Any]) -> Iterator[str]:
    """Messages for the user about a successful conversion, most of them warnings."""
    name = f"{statistics['dataset']}/{statistics['split']}"
    parts, reasons = [], []
    for unit in ("images", "objects", "phrases"):
        dropped = statistics.get(unit, {}).get("dropped")
        if dropped:
            parts.append(f"{sum(dropped.values()):,} of {statistics[unit]['listed']:,} {unit}")
            reasons += [f"{reason} ({n:,} {unit})" for reason, n in dropped.items()]
    if parts:
        yield f"{name}: {' and '.join(parts)} dropped: {', '.join(reasons)}"
    for text, reason in described(statistics):
        yield f"warning: {name}: {text}\n  -> remove the copies: {reason}"
    objects = statistics["objects"]
    if objects["clipped"] > objects["written"] / 2:
        text = f"warning: {name}: {objects['clipped']:,} of {objects['written']:,} boxes extend beyond their image"
        yield f"{text} and were clipped: are they corners x1, y1, x2, y2 instead of x, y, width, height?"
    if small := objects.get("under_one_pixel"):
        text = f"warning: {name}: {small:,} of {objects['written']:,} boxes are less than a pixel wide and high"
        yield f"{text}: are their widths and heights fractions of the image?"
    replaced = statistics.get("polygons", {}).get("replaced_by_box", {})
    for reason in ("contradicts the box", "invalid segmentation"):
        if replaced.get(reason):
            yield f"warning: {name}: {replaced[reason]:,} objects keep their box: {reason}"
    exif = statistics.get("exif", {})
    if exif.get("undecidable") and exif.get("stored"):
        names = ", ".join(exif["undecidable_images"][:LISTED_PROBLEMS])
        text = f"warning: {name}: the boxes of {exif['stored']:,} images refer to the stored pixels, not to the upright"
        yield f"{text} ones; set data.exif, or check the {exif['undecidable']:,} images whose size fits both: {names}"


def _reason(problem: str) -> str:
    if problem.startswith("duplicate"):
        return problem
    return "annotation of an unknown image" if problem.endswith("is not in images") else "invalid annotation"


def _with_prefix(counts: Counter, prefix: str) -> dict[str, int]:
    return {k.removeprefix(prefix): counts[k] for k in sorted(counts) if k.startswith(prefix)}


def _round_trip(objects: Counter) -> dict[str, dict[str, float | None]]:
    """Fraction of boxes whose IoU with their norm1000 round trip is at least GOOD_IOU, by area in source pixels."""
    rows = {}
    for name in ("all", *SIZES):
        sizes = SIZES if name == "all" else (name,)
        n, good, iou_sum = (sum(objects[f"{size}:{part}"] for size in sizes) for part in ("objects", "good", "iou_sum"))
        share = good / n if n else None
        rows[name] = {"objects": n, f"share_iou_{GOOD_IOU}": share, "mean_iou": iou_sum / n if n else None}
    return rows


def _polygons(objects: Counter) -> dict[str, Any]:
    n = objects["polygons"]
    return {
        "written": n,
        "multi_part": objects["poly_parts"],
        "mean_iou_with_mask": objects["poly_iou_sum"] / n if n else None,
        f"share_iou_{GOOD_IOU}": objects["poly_iou_95"] / n if n else None,
        "replaced_by_box": _with_prefix(objects, "poly:"),
    }
