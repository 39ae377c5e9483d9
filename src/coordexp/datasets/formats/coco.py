"""COCO JSON: the user's annotation file is read unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from coordexp.datasets.folder_listing import ROLES, FolderListing, split_of, without_split
from coordexp.datasets.formats.base import FORMATS, DatasetFormat, FolderOptions, PerSplit, Proposal, SplitFiles
from coordexp.datasets.json_spans import element_spans, read_spans
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError

SAMPLE = 50  # images and annotations of a file that are looked at to recognise it


class CocoOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in COCO or LVIS format; paths are relative to its folder."""

    annotations: Annotated[PerSplit[str], msgspec.Meta(description="annotation file of each split")]
    image_dirs: Annotated[PerSplit[list[str]], msgspec.Meta(description="folders of images of each split")]


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


def _one_per_split(kinds: dict[str, dict[str, list[_AnnotationFile]]]) -> list[dict[str, _AnnotationFile]]:
    """The files of each kind by split; kinds whose splits differ and whose names differ by the split's folder only."""
    found: list[dict[str, _AnnotationFile]] = []
    for splits in kinds.values():
        for n in range(max(map(len, splits.values()))):
            found.append({split: files[n] for split, files in splits.items() if n < len(files)})
    alone = [files for files in found if len(files) == 1]
    if len(alone) > 1 and len({split for files in alone for split in files}) == len(alone) == len(found):
        return [{split: file for files in found for split, file in files.items()}]
    return found


def _proposal(listing: FolderListing, files: dict[str, _AnnotationFile]) -> Proposal:
    files = dict(sorted(files.items(), key=lambda item: ROLES.index(item[0])))
    folders = {split: listing.folders_of_images(file.names, file.path) for split, file in files.items()}
    options = {"annotations": {split: file.path for split, file in files.items()}, "image_dirs": folders}
    return Proposal(options=options, evidence=", ".join(file.path for file in files.values()))


@FORMATS.register("coco")
class CocoFormat(DatasetFormat[CocoOptions]):
    """COCO JSON with exhaustive annotations. Nothing is copied: the Source names the user's own file."""

    Options = CocoOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """JSON files with images, boxes and categories; one proposal per kind of file (instances, keypoints, ...)."""
        kinds: dict[str, dict[str, list[_AnnotationFile]]] = {}
        for path in listing.with_suffix(".json"):
            file = _annotation_file(listing, path)
            if file is not None and file.federated == cls.federated:
                split = split_of(path) or "train"
                kinds.setdefault(without_split(path), {}).setdefault(split, []).append(file)
        merged = _one_per_split(kinds)
        return [_proposal(listing, files) for files in merged]

    def files(self, split: str) -> SplitFiles:
        """The annotation file and the folders of images of `split`."""
        return SplitFiles((self.options.annotations[split],), tuple(self.options.image_dirs[split]))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The Source that names the user's own file."""
        (annotations,), image_dirs = self.files(split)
        return self.source(split, folder / annotations, [folder / name for name in image_dirs])
