"""Counts of a conversion: everything listed is written or dropped for a named reason."""

from __future__ import annotations

from collections import Counter

import msgspec

from coordexp.datasets.annotation_index import Index
from coordexp.datasets.objects import GOOD_IOU, SIZES, Skip
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located


class Tally(msgspec.Struct):
    """Counts of one chunk or of all of them."""

    counts: Counter = msgspec.field(default_factory=Counter)
    objects: Counter = msgspec.field(default_factory=Counter)
    skipped: list[Skip] = []

    @classmethod
    def from_json(cls, data: bytes) -> Tally:
        """The counts that an earlier run wrote."""
        raw = msgspec.json.decode(data)
        return cls(Counter(raw["counts"]), Counter(raw["objects"]), msgspec.convert(raw["skipped"], list[Skip]))

    def add(self, other: Tally) -> None:
        """Add the counts of another chunk."""
        self.counts.update(other.counts)
        self.objects.update(other.objects)
        self.skipped += other.skipped


def bad_input(skip: Skip, annotation_file: str) -> DataError:
    """The error for something that `on_bad: skip` would leave out."""
    ids = [f"image {skip.image_id!r}"] if skip.image_id is not None else []
    ids += [f"annotation {skip.annotation_id!r}"] if skip.annotation_id is not None else []
    field = ", ".join(ids) or skip.kind
    name = f" ({skip.file})" if skip.file else ""
    fix = "correct the data, or set data.on_bad: skip to leave such items out and list them in the statistics"
    detail = f": {skip.detail}" if skip.detail else ""
    return DataError(located(f"{skip.reason}{detail}", file=annotation_file, field=field + name, fix=fix))


def lost(index: Index, on_bad: str) -> Tally:
    """Counts of the elements that no image has; DataError for the first one if `on_bad` is `error`."""
    tally = Tally()
    for field, element in index.lost:
        kind = "image" if field == "images" else "annotation"
        reason = _reason(element.problem)
        detail = "" if reason == element.problem else element.problem
        annotation_id = element.id if kind == "annotation" else None
        skip = Skip(kind, reason, element.image_id, annotation_id, "", detail)
        if on_bad == "error":
            raise bad_input(skip, index.path)
        plural = "images" if kind == "image" else "objects"
        tally.counts[f"{plural} listed"] += 1
        tally.counts[f"{plural} dropped:{reason}"] += 1
        tally.skipped.append(skip)
    return tally


def _reason(problem: str) -> str:
    if problem.startswith("duplicate"):
        return problem
    return "annotation of no image" if problem.endswith("is not in images") else "unreadable annotation"


def summary(tally: Tally, source: Source, categories: int) -> dict:
    """The statistics file: `listed = written + sum(dropped)` for images and for objects."""
    counts, objects = tally.counts, tally.objects
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
        },
        "blocks": {
            "mean": sum(k * n for k, n in blocks.items()) / total if total else 0.0,
            "max": max(blocks, default=0),
        },
        "round_trip": _round_trip(objects),
    }
    if objects["polygons"] or any(k.startswith("poly:") for k in objects):
        out["polygons"] = _polygons(objects)
    return out | {"skipped": [msgspec.to_builtins(s) for s in tally.skipped]}


def _with_prefix(counts: Counter, prefix: str) -> dict[str, int]:
    return {k.removeprefix(prefix): counts[k] for k in sorted(counts) if k.startswith(prefix)}


def _round_trip(objects: Counter) -> dict:
    """Share of boxes whose IoU with their norm1000 round trip is at least GOOD_IOU, by source area."""
    rows = {}
    for name in ("all", *SIZES):
        own = SIZES if name == "all" else (name,)
        n, good, iou_sum = (sum(objects[f"{size}:{part}"] for size in own) for part in ("objects", "good", "iou_sum"))
        share = good / n if n else None
        rows[name] = {"objects": n, f"share_iou_{GOOD_IOU}": share, "mean_iou": iou_sum / n if n else None}
    return rows


def _polygons(objects: Counter) -> dict:
    n = objects["polygons"]
    return {
        "written": n,
        "of_several_parts": objects["poly_parts"],
        "mean_iou_with_mask": objects["poly_iou_sum"] / n if n else None,
        f"share_iou_{GOOD_IOU}": objects["poly_iou_95"] / n if n else None,
        "boxes_instead": _with_prefix(objects, "poly:"),
    }
