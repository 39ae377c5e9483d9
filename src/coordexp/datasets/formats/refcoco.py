"""RefCOCO's referring expressions as JSON: the list of REFER's `refs(unc).p`, and the COCO file `instances.json`.

Each element of the list is one set of objects with its phrases, as in the JSON files of gRefCOCO:

    {"image_id": 1, "ann_id": 7, "split": "train", "sentences": [{"sent": "the left dog"}, ...], ...}

`ann_id` is one annotation id, or a list of several; -1 or an empty list for phrases that describe nothing. Pickles run
code when they are read, so they are refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from coordexp.datasets.annotation_entries import ImageEntry, InvalidElement
from coordexp.datasets.annotation_index import AnnotationIndex, all_images, build_index, read_images
from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.categories import load_categories
from coordexp.datasets.folder_listing import FolderListing
from coordexp.datasets.formats.base import FORMATS, ConvertedOptions, DatasetFormat, ImageDirs, PerSplit, SplitFiles
from coordexp.datasets.formats.entries import convert_entry, open_text, parse_json, shown
from coordexp.datasets.formats.json_array import json_array
from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.phrases import phrase_problem
from coordexp.datasets.source import Source
from coordexp.runtime.errors import DataError, located

PICKLES = (".p", ".pkl", ".pickle")
TO_JSON = (
    'a pickle runs code when it is read; if you trust its source, convert it once: python -c "import json, pickle; '
    "json.dump(pickle.load(open('{name}', 'rb'), encoding='utf-8'), open('{stem}.json', 'w'))\""
)
NOTHING = -1  # the `ann_id` of a phrase without objects in gRefCOCO
Id = int | str


class RefcocoOptions(ConvertedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dataset in RefCOCO's format; paths are relative to its folder."""

    refs: Annotated[str, msgspec.Meta(description="JSON list of referring expressions, of all splits")]
    instances: Annotated[str, msgspec.Meta(description="COCO file of the images and boxes that they refer to")] = (
        "instances.json"
    )
    splits: Annotated[PerSplit[str], msgspec.Meta(description="value of `split` in the list, by split")]
    image_dirs: ImageDirs


class _Ref(msgspec.Struct):
    image_id: Id
    ann_id: Id | list[Id]
    split: str
    sentences: list[Any]

    @property
    def annotation_ids(self) -> list[Id]:
        ids = self.ann_id if isinstance(self.ann_id, list) else [self.ann_id]
        return [i for i in ids if i != NOTHING]


class _Sentence(msgspec.Struct):
    sent: str


class _ImagePhrases(msgspec.Struct):
    """The phrases of one image: (line, text, annotation ids)."""

    index: int
    phrases: list[tuple[int, str, list[Id]]] = []


@FORMATS.register("refcoco")
class RefcocoFormat(DatasetFormat[RefcocoOptions]):
    """RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as JSON. All boxes of an image are objects, with or without phrase."""

    Options = RefcocoOptions

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Any]:
        """Nothing: the images of RefCOCO are those of COCO, and lie elsewhere."""
        return []

    def files(self, split: str) -> SplitFiles:
        """The two files, and the folders of images of `split`."""
        return SplitFiles((self.options.refs, self.options.instances), tuple(self.options.image_dirs[split]))

    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The annotation file of the images with phrases in `split`."""
        target, refs = self.annotation_path(split, raw_dir), folder / self.options.refs
        _refuse_pickle(refs)
        index = build_index(folder / self.options.instances)
        categories = load_categories(index.path, self.options.on_bad, index.categories)
        with AnnotationWriter(target, self.options.on_bad) as writer:
            images = self._images(split, refs, index, writer)
            _write_images(writer, refs, index, images)
            writer.set_categories([{"id": category.id, "name": category.name} for category in categories])
        return self.source(split, target, [folder / name for name in self.options.image_dirs[split]])

    def _images(self, split: str, refs: Path, index: AnnotationIndex, writer: AnnotationWriter) -> list[_ImagePhrases]:
        """The images that phrases of `split` are about, in the order of the list."""
        index_of, images = _image_indices(index), dict[str, _ImagePhrases]()
        wanted, found = self.options.splits[split], Counter[str]()
        for line, text in json_array(refs):
            try:
                ref = convert_entry(parse_json(text), _Ref)
                found[ref.split] += 1
                if ref.split == wanted:
                    if str(ref.image_id) not in index_of:
                        raise BadItem("unknown image", f"image_id {shown(ref.image_id)} is not in {index.path}")
                    new = _ImagePhrases(index_of[str(ref.image_id)])
                    own = images.setdefault(str(ref.image_id), new)
                    own.phrases += [(line, sent, ref.annotation_ids) for sent in _sentences(ref, line, refs, writer)]
            except BadItem as bad:
                writer.skip("phrase", bad.reason, refs, line, bad.detail)
        if not images:
            field = f"datasets.{self.dataset}.splits.{split}"
            facts = {"expected": sorted(found)[:20], "found": wanted}
            fix = "name a value of `split` in the file, and correct the entries that cannot be read"
            raise DataError(located("no usable phrase in this split", file=refs, field=field, **facts, fix=fix))
        return list(images.values())


def _refuse_pickle(path: Path) -> None:
    """DataError for a pickle, by its name or its first bytes, with the command that converts it."""
    with open_text(path) as handle:
        start = handle.read(2)
    if path.suffix.lower() in PICKLES or start[:1] == b"\x80" or start == b"(l":
        fix = TO_JSON.format(name=path.name, stem=path.stem) + f", and set `refs: {path.stem}.json`"
        raise DataError(located("the file is a pickle, expected JSON", file=path, fix=fix))


def _sentences(ref: _Ref, line: int, refs: Path, writer: AnnotationWriter) -> Iterator[str]:
    """The usable phrases of an element."""
    for k, value in enumerate(ref.sentences):
        field = f"sentences[{k}]"
        try:
            sent = convert_entry(value, _Sentence, field).sent
            if problem := phrase_problem(sent):
                raise BadItem("invalid phrase", f"{field}.sent: {problem}")
        except BadItem as bad:
            writer.skip("phrase", bad.reason, refs, line, bad.detail)
        else:
            yield sent


def _image_indices(index: AnnotationIndex) -> dict[str, int]:
    """Position of each usable image in the file, by its id as text."""
    return {str(image.id): i for i, image in enumerate(all_images(index)) if isinstance(image, ImageEntry)}


def _write_images(writer: AnnotationWriter, refs: Path, index: AnnotationIndex, images: list[_ImagePhrases]) -> None:
    """Write these images with all of their annotations, and the phrases that refer to those."""
    lost: dict[str, list[InvalidElement]] = {}
    for field, element in index.invalid:
        if field == "annotations":
            lost.setdefault(str(element.image_id), []).append(element)
    fd = os.open(index.path, os.O_RDONLY)
    try:
        for item in images:
            [image] = read_images(fd, index, item.index, item.index + 1)
            assert isinstance(image, ImageEntry)
            for element in lost.get(str(image.id), ()):
                writer.skip("annotation", "invalid annotation", index.path, None, f"{element.id!r}: {element.problem}")
            ids = _write_annotations(writer, index, item.index, image.id)
            phrases = []
            for line, text, annotation_ids in item.phrases:
                unknown = [i for i in annotation_ids if str(i) not in ids]
                if unknown:
                    detail = f"ann_id {shown(unknown[0])} is not an annotation of image {shown(image.id)}"
                    writer.skip("phrase", "unknown annotation", refs, line, detail)
                else:
                    phrases.append({"text": text, "annotation_ids": [ids[str(i)] for i in annotation_ids]})
            entry = {"id": image.id, "file_name": image.path, "width": image.width, "height": image.height}
            writer.add_image({**entry, "phrases": phrases})
    finally:
        os.close(fd)


def _write_annotations(writer: AnnotationWriter, index: AnnotationIndex, i: int, image_id: Id) -> dict[str, Id]:
    """Write the annotations of image number `i`; returns their ids by text."""
    rows = index.annotations_of(i, i + 1)
    ids = rows.ids.tolist()
    columns = (ids, rows.categories.tolist(), rows.boxes.tolist(), rows.crowd.tolist())
    for annotation_id, category_id, box, crowd in zip(*columns, strict=True):
        entry = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": box}
        writer.add_annotation({**entry, "area": box[2] * box[3], "iscrowd": int(crowd)})
    return {str(i): i for i in ids}
