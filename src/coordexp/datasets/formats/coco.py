"""COCO JSON: the user's annotation file is read unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from coordexp.datasets.folder_listing import FolderListing, group_by_split
from coordexp.datasets.formats.base import FORMATS, AnnotationFileFormat, FolderOptions, ImageDirs, PerSplit, Proposal
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError

SAMPLE = 50  # images and annotations of a file that are looked at to recognise it


class CocoOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in COCO or LVIS format; paths are relative to its folder."""

    annotations: Annotated[PerSplit[str], msgspec.Meta(description="annotation file of each split")]
    image_dirs: ImageDirs


class _AnnotationFile(NamedTuple):
    path: str
    names: list[str]
    federated: bool


class _FirstImages(msgspec.Struct):
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[int] | None = None

    @property
    def name(self) -> str:
        return self.file_name or "/".join((self.coco_url or "").split("/")[-2:])


def _annotation_file(listing: FolderListing, path: str) -> _AnnotationFile | None:
    """What an annotation file in COCO format says about itself; None for any other JSON file."""
    if not listing.head(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return None
    file = listing.root / path
    try:
        spans = element_spans(file, ("images", "annotations", "categories"))
        if not {"images", "annotations", "categories"} <= set(spans):
            return None
        with file.open("rb") as handle:
            shown = spans["images"][:: max(len(spans["images"]) // SAMPLE, 1)]
            images = msgspec.json.decode(_listed(read_spans(handle.fileno(), shown)), type=list[_FirstImages])
            boxes = msgspec.json.decode(_listed(read_spans(handle.fileno(), spans["annotations"][:SAMPLE])))
    except (DataError, msgspec.MsgspecError):
        return None
    if boxes and not any("bbox" in box for box in boxes):
        return None  # captions, or panoptic segments
    return _AnnotationFile(
        path, [i.name for i in images if i.name], any(i.neg_category_ids is not None for i in images)
    )


def _listed(elements: list[bytes]) -> bytes:
    return b"[" + b",".join(elements) + b"]"


def _proposal(listing: FolderListing, files: dict[str, _AnnotationFile]) -> Proposal:
    folders = {split: listing.folders_of_images(file.names, file.path) for split, file in files.items()}
    options = {"annotations": {split: file.path for split, file in files.items()}, "image_dirs": folders}
    return Proposal(options=options, evidence=", ".join(file.path for file in files.values()))


@FORMATS.register("coco")
class CocoFormat(AnnotationFileFormat[CocoOptions]):
    """COCO JSON with exhaustive annotations. Nothing is copied: the Source names the user's own file."""

    Options = CocoOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """JSON files with images, boxes and categories; one proposal per kind of file (instances, keypoints, ...)."""
        found = {path: file for path in listing.with_suffix(".json") if (file := _annotation_file(listing, path))}
        kinds = group_by_split(path for path, file in found.items() if file.federated == cls.federated)
        return [_proposal(listing, {split: found[path] for split, path in kind.items()}) for kind in kinds]

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The Source that names the user's own file."""
        (annotations,), image_dirs = self.files(split)
        return self.source(split, folder / annotations, [folder / name for name in image_dirs])
