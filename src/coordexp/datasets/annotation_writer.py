"""Writes annotation files in COCO format, for formats that convert the user's files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from coordexp.datasets.source import OnBad
from coordexp.runtime.errors import DataError, listed, located
from coordexp.runtime.io import atomic_open

_encode = msgspec.json.Encoder().encode


ItemKind = Literal["image", "annotation", "phrase"]


class SkippedLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of the user's files that is not in the annotation file: `line` from 1, None if no line is at fault."""

    kind: ItemKind
    reason: str
    file: str
    line: int | None = None
    detail: str = ""


class AnnotationWriter(contextlib.AbstractContextManager):
    """Streams images and annotations to a file in COCO format; memory does not grow with their number.

    The file appears when the `with` block ends without an exception. Each category, image and annotation is a map as
    COCO defines it (image and category ids and sizes included). What cannot be converted is passed to `skip`. With
    `on_bad="skip"` it is listed in the file under `skipped`, for the statistics of the conversion; otherwise the end of
    the block is a DataError with the number of problems and the first of them.
    """

    def __init__(self, path: str | Path, on_bad: OnBad = "error", info: Mapping[str, Any] = {}):
        self.path = Path(path)
        self._on_bad, self._info = on_bad, info
        self._categories: Sequence[Mapping[str, Any]] = ()
        self.image_count = self.annotation_count = 0
        self._skipped: list[SkippedLine] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> AnnotationWriter:
        self._out: IO[bytes] = self._stack.enter_context(atomic_open(self.path))
        self._later: IO[bytes] = self._stack.enter_context(tempfile.TemporaryFile(dir=self.path.parent))
        self._out.write(b'{"info":' + _encode(self._info) + b',"licenses":[],"images":[')
        return self

    def add_image(self, image: Mapping[str, Any]) -> None:
        """Add an entry of `images`."""
        self._out.write((b"," if self.image_count else b"") + _encode(image))
        self.image_count += 1

    def add_annotation(self, annotation: Mapping[str, Any]) -> None:
        """Add an entry of `annotations`."""
        self._later.write((b"," if self.annotation_count else b"") + _encode(annotation))
        self.annotation_count += 1

    def set_categories(self, categories: Sequence[Mapping[str, Any]]) -> None:
        """Set the list `categories`, before the block ends."""
        self._categories = categories

    def skip(
        self,
        kind: ItemKind,
        reason: str,
        file: str | Path,
        line: int | None = None,
        detail: str = "",
    ) -> None:
        """Leave an item of the user's files out. This does not raise: the caller continues with the next item."""
        self._skipped.append(SkippedLine(kind, reason, str(file), line, detail))

    def __exit__(self, kind, error, traceback) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, traceback)
        with self._stack:
            if self._skipped and self._on_bad == "error":
                raise _bad_items(self._skipped)
            self._later.seek(0)
            self._out.write(b'],"annotations":[')
            shutil.copyfileobj(self._later, self._out)
            self._out.write(b'],"categories":' + _encode(self._categories))
            if self._skipped:
                self._out.write(b',"skipped":' + _encode(self._skipped))
            self._out.write(b"}")
        return None


def _bad_items(items: Sequence[SkippedLine]) -> DataError:
    lines = [located(f"{i.reason}: {i.detail}" if i.detail else i.reason, file=i.file, line=i.line) for i in items]
    fix = "correct the files, or set `on_bad: skip` for this dataset to leave such items out and list them"
    return DataError(located(listed(lines), fix=fix))
