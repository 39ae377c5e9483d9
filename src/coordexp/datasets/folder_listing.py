"""The files below a folder, listed once, for the formats that recognise what it holds."""

from __future__ import annotations

import itertools
import os
import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from coordexp.runtime.errors import ConfigError, located

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
_SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ROLES = tuple(_SPLITS)
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}


class FolderListing:
    """Paths of all files below `root`, relative to it with forward slashes, in order; hidden ones are left out."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(located("not a folder", file=self.root, fix="pass the folder of the dataset"))
        self.files: list[str] = sorted(self._walk(""))

    def _walk(self, below: str) -> Iterable[str]:
        with os.scandir(self.root / below) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir():
                    yield from self._walk(path)
                else:
                    yield path

    @cached_property
    def file_set(self) -> frozenset[str]:
        """The files, to look one up."""
        return frozenset(self.files)

    @cached_property
    def images(self) -> list[str]:
        """The files that are images by their suffix."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @cached_property
    def image_folders(self) -> Counter[str]:
        """Number of images by the folder that they are in; the root is the empty text."""
        return Counter(path.rpartition("/")[0] for path in self.images)

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """The images by the last part of their paths."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.images:
            found[path.rpartition("/")[2]].append(path)
        return found

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes (`.json`), in any case."""
        return [path for path in self.files if PurePosixPath(path).suffix.lower() in suffixes]

    def head(self, path: str, size: int = 4096) -> bytes:
        """The first bytes of a file."""
        with (self.root / path).open("rb") as handle:
            return handle.read(size)

    def first_json(self, path: str, size: int = 1 << 20) -> Any:
        """The first line of a JSONL file as a value; None if it is not JSON, or longer than `size` bytes."""
        try:
            return msgspec.json.decode(self.head(path, size).removeprefix(BOM_UTF8).split(b"\n", 1)[0])
        except msgspec.MsgspecError:
            return None

    def folders_of_images(self, names: Iterable[str], near: str = "") -> list[str]:
        """Folders that hold images of these names (which may contain folders), those with the most names first.

        Where an image of the same name is in several folders, one that shares most with the path `near` is taken.
        """
        votes: Counter[str] = Counter()
        for name in names:
            candidates = [
                path[: len(path) - len(name)].rstrip("/")
                for path in self.images_by_name.get(name.rpartition("/")[2], [])
                if path == name or path.endswith(f"/{name}")
            ]
            if candidates:
                votes[min(candidates, key=lambda folder: (_distance(folder, near), folder))] += 1
        return [folder or "." for folder, _ in votes.most_common()]


def split_of(path: str) -> str | None:
    """The role (train, val, test) that a word in a path names, the last one if several do; None without one.

    `instances_train2017.json` and `train/_annotations.coco.json` are of the split train.
    """
    words = re.findall(r"[a-z]+", path.lower())
    return next((_SPLIT_OF[word] for word in reversed(words) if word in _SPLIT_OF), None)


def without_split(path: str) -> str:
    """A path with the word that names its split replaced, so that files of one kind for several splits are equal."""
    parts = re.split(r"([A-Za-z]+)", path)
    named = [n for n, part in enumerate(parts) if part.lower() in _SPLIT_OF]
    if named:
        parts[named[-1]] = "{split}"
    return "".join(parts)


def group_by_split(paths: Iterable[str]) -> list[dict[str, str]]:
    """Annotation files by split (train, val, test; train if the name has none): one map per kind of file.

    Files that differ in the word for the split only are of one kind. If no two files are of one split, they are
    one dataset whatever their names are.
    """
    paths = list(paths)
    by_split = {split_of(path) or "train": path for path in paths}
    if len(by_split) == len(paths):
        found = [by_split]
    else:
        kinds: dict[str, list[dict[str, str]]] = {}
        for path in paths:
            kind, split = kinds.setdefault(without_split(path), [{}]), split_of(path) or "train"
            if split in kind[-1]:
                kind.append({})
            kind[-1][split] = path
        found = [files for kind in kinds.values() for files in kind]
    return [{split: files[split] for split in ROLES if split in files} for files in found if files]


def _distance(folder: str, near: str) -> tuple[int, int]:
    """How little a folder has to do with a path: split first, then the length of the common start, negated."""
    same = split_of(folder) is not None and split_of(folder) == split_of(near)
    pairs = zip(folder.split("/"), near.split("/"), strict=False)
    return -int(same), -len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
