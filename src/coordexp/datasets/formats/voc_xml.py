"""The XML file of one image in PASCAL VOC format, read without document types and entities."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import msgspec

from coordexp.datasets.formats.reading import BadItem

_OBJECT = ("annotation", "object")
_IN_OBJECT = {(*_OBJECT, name): name for name in ("name", "difficult", "bndbox")} | {
    (*_OBJECT, "bndbox", name): name for name in ("xmin", "ymin", "xmax", "ymax")
}
_IN_FILE = {
    ("annotation", "filename"): "filename",
    ("annotation", "size", "width"): "width",
    ("annotation", "size", "height"): "height",
}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(msgspec.Struct, gc=False):
    """The texts of an `object`, which begins at `line`, by element; repeated: an element that it has twice."""

    line: int
    texts: dict[str, str] = {}
    repeated: str | None = None

    def corners(self) -> list[str]:
        """xmin, ymin, xmax, ymax; BadItem if one is missing or repeated."""
        if self.repeated:
            raise BadItem("invalid object", f"two elements {self.repeated!r}")
        missing = [name for name in _CORNERS if name not in self.texts]
        if missing:
            raise BadItem("object without a box", f"missing in bndbox: {', '.join(missing)}")
        return [self.texts[name] for name in _CORNERS]


class VocFile(msgspec.Struct, gc=False):
    """The texts of an annotation file by element, and its objects."""

    texts: dict[str, str] = {}
    objects: list[VocObject] = []

    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None if the file has none, or zeros. BadItem for anything else."""
        texts = (self.texts.get("width", "0"), self.texts.get("height", "0"))
        if not all(text.isascii() and text.isdigit() and len(text) < 7 for text in texts):
            raise BadItem("invalid size", f"expected width and height in pixels, found {texts[0]!r}, {texts[1]!r}")
        width, height = map(int, texts)
        return (width, height) if width and height else None


class _Reader:
    def __init__(self) -> None:
        self.file = VocFile()
        self.stack: list[str] = []
        self.text: list[str] = []
        parser = self.parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text.append
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = self.refuse

    def start(self, name: str, _: dict[str, str]) -> None:
        self.stack.append(name)
        self.text.clear()
        if len(self.stack) == 1 and name != "annotation":
            detail = f"expected the element annotation, found {name[:80]!r}"
            raise BadItem("not a VOC annotation", detail, self.parser.CurrentLineNumber)
        if len(self.stack) == 2 and name == "object":
            self.file.objects.append(VocObject(self.parser.CurrentLineNumber))

    def end(self, _: str) -> None:
        path = tuple(self.stack) if len(self.stack) <= 4 else ()
        self.stack.pop()
        text = "".join(self.text).strip()
        self.text.clear()
        if path in _IN_OBJECT:
            item, name = self.file.objects[-1], _IN_OBJECT[path]
            item.repeated = item.repeated or (name if name in item.texts else None)
            item.texts[name] = text
        elif path in _IN_FILE:
            self.file.texts.setdefault(_IN_FILE[path], text)

    def refuse(self, *_: object) -> NoReturn:
        detail = "document types and entities can read other files and fill the memory; remove <!DOCTYPE ...>"
        raise BadItem("XML with a document type declaration", detail, self.parser.CurrentLineNumber)


def read_voc_file(path: Path) -> VocFile:
    """The contents of an annotation file; BadItem with the line if it is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadItem("unreadable file", error.strerror or str(error)) from error
    if not data.strip():
        raise BadItem("empty file", "expected an XML file")
    reader = _Reader()
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise BadItem("not XML", expat.errors.messages.get(error.code, str(error)), error.lineno) from error
    except (ValueError, LookupError) as error:
        raise BadItem("unknown encoding", str(error), reader.parser.CurrentLineNumber) from error
    return reader.file
