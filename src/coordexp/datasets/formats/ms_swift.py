"""ms-swift's grounding JSON lines: `messages`, `images` and `objects` {ref, bbox, bbox_type, image_id}.

`<ref-object>` and `<bbox>` in the messages stand for the entries of `ref` and `bbox`, in order. A box belongs to the
reference inside the same braces, as in `{"bbox_2d": <bbox>, "label": "<ref-object>"}`, otherwise to the last reference
before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.source import Source

_PART = re.compile(r"\{[^{}]*\}|<ref-object>|<bbox>")
_TAG = re.compile(r"<ref-object>|<bbox>")
_LABEL = re.compile(r'"label"\s*:\s*"((?:[^"\\<]|\\.)+)"')


class MsSwiftOptions(EntryOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in ms-swift's grounding format; paths are relative to its folder."""

    annotations: Annotated[PerSplit[str], msgspec.Meta(description="JSONL file of each split")]
    image_dirs: ImageDirs


class _Objects(msgspec.Struct):
    bbox: list[Any] = []
    ref: list[Any] = []
    bbox_type: Literal["real", "norm1"] | None = None
    image_id: list[Any] | None = None


class _Message(msgspec.Struct):
    content: Any = ""


class _Line(msgspec.Struct):
    images: Any
    messages: list[_Message] = []
    objects: _Objects | None = None


@FORMATS.register("ms_swift")
class MsSwiftFormat(AnnotationFileFormat[MsSwiftOptions]):
    """Boxes are x1, y1, x2, y2 in pixels (`bbox_type: real`, ms-swift's default) or fractions (`norm1`)."""

    Options = MsSwiftOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """JSONL files whose lines have `messages`, `images`, and `objects` with boxes."""
        found: dict[str, list[str]] = {}
        for path in listing.with_suffix(".jsonl"):
            line = listing.first_json(path)
            if isinstance(line, dict) and {"messages", "images"} <= set(line) and "bbox" in (line.get("objects") or {}):
                found[path] = [str(name) for name in line["images"]]
        return [
            Proposal(
                options={
                    "annotations": files,
                    "image_dirs": {s: listing.folders_of_images(found[path], path) for s, path in files.items()},
                },
                evidence=", ".join(files.values()),
            )
            for files in group_by_split(found)
        ]

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file of all lines; a line with several images has an entry for each."""
        (name,), image_dirs = self.files(split)
        dirs, target = [folder / path for path in image_dirs], self.annotation_path(split, raw_dir)
        categories = declared_categories(self.options.categories)
        with EntryWriter(target, folder / name, dirs, categories, self.options) as writer:
            for number, value in writer.json_lines():
                with writer.skipping("image", number):
                    _write_line(writer, number, convert_entry(value, _Line))
        return self.source(split, target, dirs)


def _write_line(writer: EntryWriter, number: int, line: _Line) -> None:
    if line.objects is None:
        raise BadItem("no objects", "expected `objects`; for an image without objects write empty lists")
    objects, names = line.objects, _image_names(line.images)
    references = _references(line.messages, objects)
    images: list[Image | None] = []
    for k, name in enumerate(names):
        images.append(None)
        with writer.skipping("image", number):
            images[k] = writer.image(name, f"images[{k}]")
    for k, (box, reference) in enumerate(zip(objects.bbox, references, strict=True)):
        with writer.skipping("annotation", number):
            image = images[_image_index(objects.image_id, k, len(images))]
            category_id = writer.categories.by_name(reference, f"objects.ref of bbox[{k}]")
            if image is None:
                continue  # with its image
            if isinstance(box, list) and len(box) == 2:
                raise BadItem("point", f"objects.bbox[{k}]: {shown(box)} is a point, not a box")
            unit = Unit.of(image, "xyxy", "fractions" if objects.bbox_type == "norm1" else "pixels")
            writer.add_box(image, number, category_id, box, unit, f"objects.bbox[{k}]")
    for image in images:
        if image is not None:
            writer.write(image)


def _image_names(images: Any) -> list[Any]:
    """The file names in `images`: a name, an object with a path, or a list of them."""
    listed = images if isinstance(images, list) else [images]
    if not listed:
        raise BadItem("invalid entry", "images: expected an image, found an empty list")
    return [image.get("path") if isinstance(image, dict) else image for image in listed]


def _image_index(image_ids: Sequence[Any] | None, k: int, count: int) -> int:
    """The image of box `k`: ms-swift takes the first one where `image_id` is missing."""
    index = image_ids[k] if image_ids is not None and k < len(image_ids) else 0
    if type(index) is not int or not 0 <= index < count:
        raise BadItem("unknown image", f"objects.image_id[{k}]: expected 0..{count - 1}, found {shown(index)}")
    return index


def _references(messages: Sequence[_Message], objects: _Objects) -> list[Any]:
    """The reference of each box; None where it has none. BadItem if the tags do not match the lists."""
    text = "\n".join(_text(message.content) for message in messages)
    tags = _TAG.findall(text)
    if not tags and len(objects.ref) == len(objects.bbox):
        return objects.ref
    for tag, field, listed in (("<ref-object>", "ref", objects.ref), ("<bbox>", "bbox", objects.bbox)):
        if tags.count(tag) != len(listed):
            counts = f"{len(listed)} in objects.{field}, {tags.count(tag)} {tag} in messages"
            raise BadItem("tags and objects differ", counts)
    remaining, current, found = iter(objects.ref), None, []
    for part in _PART.findall(text):
        inside = _TAG.findall(part)
        own = [next(remaining) for _ in range(inside.count("<ref-object>"))]
        if part.startswith("{"):
            label = _LABEL.search(part)
            name = own[0] if own else label.group(1) if label else current
            found += [name] * inside.count("<bbox>")
        else:
            found += [current] * inside.count("<bbox>")
        current = own[-1] if own and not part.startswith("{") else current
    return found


def _text(content: Any) -> str:
    """The text of a message, which is a string or a list of parts."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and type(part.get("text")) is str)
    return content if isinstance(content, str) else ""
