"""Conversations with boxes in the answers, as Qwen-VL's own fine-tuning code reads them.

An entry has `image` (or `images`) and `conversations` [{from, value}] (or `messages` [{role, content}]). The answers
are JSON: `{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}`, or a list of such objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, AnnotationFileFormat, ImageDirs, PerSplit, Proposal
from coordexp.datasets.formats.entries import (
    EntryOptions,
    EntryWriter,
    Image,
    Unit,
    convert_entry,
    declared_categories,
    shown,
)
from coordexp.datasets.formats.json_array import json_array
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.source import Source
from coordexp.geometry.resize import grid_size

_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL)


class QwenOptions(EntryOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset of conversations; paths are relative to its folder."""

    annotations: Annotated[
        PerSplit[str], msgspec.Meta(description="file of each split: a JSON list (.json) or JSON lines (.jsonl)")
    ]
    image_dirs: ImageDirs
    box_unit: Annotated[
        Literal["norm1000", "pixels", "resized_pixels"],
        msgspec.Meta(
            description="unit of `bbox_2d`: norm1000: 0..1000, Qwen2-VL and Qwen3-VL; pixels: of the image file; "
            "resized_pixels: of the image as Qwen2.5-VL resizes it, by `factor`, `min_pixels` and `max_pixels`"
        ),
    ]
    factor: Annotated[int, msgspec.Meta(ge=1, description="resized_pixels: sides are multiples of this")] = 28
    min_pixels: Annotated[int, msgspec.Meta(ge=1, description="resized_pixels: size of the smallest image")] = 3136
    max_pixels: Annotated[int, msgspec.Meta(ge=1, description="resized_pixels: size of the largest image")] = 12845056
    label_key: Annotated[str, msgspec.Meta(description="key of the category or phrase in the answers")] = "label"

    def __post_init__(self) -> None:
        if not self.factor**2 <= self.min_pixels <= self.max_pixels:
            found = f"{self.factor}, {self.min_pixels}, {self.max_pixels}"
            raise ValueError(f"expected factor**2 <= min_pixels <= max_pixels, found {found}")


class _Entry(msgspec.Struct):
    image: Any = None
    images: Any = None
    conversations: list[Any] = []
    messages: list[Any] = []


@FORMATS.register("qwen")
class QwenFormat(AnnotationFileFormat[QwenOptions]):
    """Boxes are x1, y1, x2, y2 in the declared unit."""

    Options = QwenOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """Files of conversations with `bbox_2d`; one proposal per unit of the boxes, which the files do not state."""
        found: dict[str, list[str]] = {}
        for path in listing.with_suffix(".json", ".jsonl"):
            head = listing.head(path, 1 << 16).decode("utf-8", "replace")
            if "bbox_2d" in head and re.search(r'"(conversations|messages)"\s*:', head):
                found[path] = re.findall(r'"images?"\s*:\s*\[?\s*"([^"]+)"', head)
        proposals = []
        for files in group_by_split(found):
            folders = {split: listing.folders_of_images(found[path], path) for split, path in files.items()}
            for unit in ("norm1000", "pixels", "resized_pixels"):
                options = {"annotations": files, "image_dirs": folders, "box_unit": unit}
                proposals.append(Proposal(options=options, evidence=f"{', '.join(files.values())}; box_unit: {unit}"))
        return proposals

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file of all conversations."""
        (name,), image_dirs = self.files(split)
        file, dirs, target = folder / name, [folder / d for d in image_dirs], self.annotation_path(split, raw_dir)
        categories = declared_categories(self.options.categories)
        with EntryWriter(target, file, dirs, categories, self.options) as writer:
            listed = writer.parsed(json_array(file)) if name.endswith(".json") else writer.json_lines()
            for number, value in listed:
                with writer.skipping("image", number):
                    self._entry(writer, number, convert_entry(value, _Entry))
        return self.source(split, target, dirs)

    def _entry(self, writer: EntryWriter, number: int, entry: _Entry) -> None:
        names = entry.images if entry.image is None else entry.image
        listed = names if isinstance(names, list) else [names]
        if len(listed) != 1:
            raise BadItem("invalid entry", f"image: expected one image, found {len(listed)}")
        image = writer.image(listed[0], "image")
        unit = self._unit(image)
        turns = list(_answers(entry))
        parsed = [found for text in turns if (found := _objects(text)) is not None]
        if not parsed:
            raise BadItem(
                "no boxes", f"expected an answer with bbox_2d, or `[]`, found {shown(turns[0] if turns else '')}"
            )
        for k, item in enumerate(item for found in parsed for item in found):
            with writer.skipping("annotation", number):
                field = f"answer[{k}]"
                if not isinstance(item, dict) or "bbox_2d" not in item:
                    raise BadItem("invalid box", f"{field}: expected an object with bbox_2d, found {shown(item)}")
                category_id = writer.categories.by_name(item.get(self.options.label_key), f"{field}.label")
                writer.add_box(image, number, category_id, item["bbox_2d"], unit, f"{field}.bbox_2d")
        writer.write(image)

    def _unit(self, image: Image) -> Unit:
        options = self.options
        if options.box_unit != "resized_pixels":
            return Unit.of(image, "xyxy", options.box_unit)
        tile = options.factor**2
        limits = {"max_blocks": options.max_pixels // tile, "min_blocks": -(-options.min_pixels // tile)}
        try:
            width, height = grid_size(image.width, image.height, "shrink", factor=options.factor, **limits)
        except ValueError as error:
            raise BadItem("impossible size", str(error)) from None
        return Unit("xyxy", width, height)


def _answers(entry: _Entry) -> Iterator[str]:
    """The text of every answer."""
    for turn in entry.conversations or entry.messages:
        if not isinstance(turn, dict):
            raise BadItem("invalid entry", f"conversations: expected objects, found {shown(turn)}")
        if turn.get("from", turn.get("role")) in ("gpt", "assistant", "model"):
            content = turn.get("value", turn.get("content"))
            if isinstance(content, list):
                content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            if not isinstance(content, str):
                raise BadItem("invalid entry", f"conversations: expected text as answer, found {shown(content)}")
            yield content


def _objects(answer: str) -> list[Any] | None:
    """The objects in an answer; None for an answer without boxes, BadItem for boxes that cannot be parsed."""
    fenced = _FENCE.search(answer)
    text = (fenced.group(1) if fenced else answer).strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if "bbox_2d" in text:
            raise BadItem("answer is not JSON", shown(answer)) from None
        return None
    if isinstance(found, dict):
        return [found] if "bbox_2d" in found else None
    return found if isinstance(found, list) and (not found or "bbox_2d" in text) else None
