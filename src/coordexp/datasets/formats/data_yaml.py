"""Ultralytics' data.yaml: classes, and the folders or lists of images of each split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from coordexp.datasets.formats.reading import BadItem, numbered_categories, relative_name, text_lines, whole_file_error
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.notices import notice

MAX_BYTES = 1_000_000


class DataYaml(NamedTuple):
    """One split of a data.yaml.

    base: folder that names of images in lists are relative to. sources: the split's folders and lists of images. Both
    are relative to the folder of the file. keypoint_values: numbers after the box in each line of a label file.
    """

    categories: list[dict[str, Any]]
    base: str
    sources: list[str]
    keypoint_values: int


def read_data_yaml(path: Path, split: str) -> DataYaml:
    """What a data.yaml says about the split under the key `split`; DataError with file, line and field."""
    fields = _Fields(path)
    names, lines = _names(fields)
    categories = numbered_categories(names, path, "names", lines)
    _check_count(fields, len(categories))
    base = _base(fields)
    return DataYaml(categories, base, _sources(fields, split, base), _keypoint_values(fields))


class _Fields:
    """The keys of a data.yaml as nodes, which know their lines; text stays text (`no` is a name, not false)."""

    def __init__(self, path: Path):
        self.path = path
        if path.stat().st_size > MAX_BYTES:
            raise DataError(located("the file is too large", file=path, expected=f"at most {MAX_BYTES:,} bytes"))
        try:
            text = "\n".join(line for _, line in text_lines(path))
            node = yaml.compose(text, Loader=yaml.SafeLoader)  # not libyaml's: it crashes if nested too deeply
        except BadItem as error:
            raise whole_file_error(path, error) from error
        except RecursionError as error:
            raise DataError(located("not YAML: nested too deeply", file=path)) from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else None
            raise DataError(located(f"not YAML: {error.problem}", file=path, line=line)) from error
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(located(f"not YAML: {' '.join(str(error).split())}", file=path)) from error
        if not isinstance(node, yaml.MappingNode):
            raise DataError(located("not a data.yaml", file=path, expected="the keys names and train, val or test"))
        self.nodes = self._by_key(node)

    def _by_key(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error("not a plain key", key)
            if key.value in found:
                raise self.error(f"the key {key.value!r} is repeated", key)
            found[key.value] = value
        return found

    def entries(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """The values of a map by their keys."""
        return self._by_key(node)

    def get(self, key: str) -> yaml.Node | None:
        """The value of a key; None if it is missing or empty."""
        node = self.nodes.get(key)
        return None if node is None or node.tag == "tag:yaml.org,2002:null" else node

    def text(self, node: yaml.Node, key: str) -> str:
        """The text of a scalar."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error("expected text", node, key)
        return node.value

    def integer(self, node: yaml.Node, key: str) -> int:
        """The value of a non-negative integer."""
        text = self.text(node, key)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise self.error("expected an integer of at least 0", node, key, found=text)
        return int(text)

    def error(self, problem: str, node: yaml.Node | None, key: str | None = None, **facts: Any) -> DataError:
        """The DataError for the value of a key."""
        line = node.start_mark.line + 1 if node is not None else None
        return DataError(located(problem, file=self.path, line=line, field=key, **facts))


def _names(fields: _Fields) -> tuple[list[str], list[int]]:
    """(class names by index, their lines)."""
    node = fields.get("names")
    if node is None:
        raise fields.error("required key is missing", None, "names", expected="the class names, a list or a map")
    if isinstance(node, yaml.SequenceNode):
        nodes = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        by_index = {}
        for key, value in fields.entries(node).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10) or int(key) in by_index:
                raise fields.error("not a class index", value, "names", expected="0, 1, 2, ...", found=key)
            by_index[int(key)] = value
        if sorted(by_index) != list(range(len(by_index))):
            facts = {"expected": f"0 to {len(by_index) - 1}", "found": sorted(by_index)[:20]}
            raise fields.error("class indices are missing", node, "names", **facts)
        nodes = [by_index[index] for index in range(len(by_index))]
    else:
        raise fields.error("expected the class names, a list or a map", node, "names")
    return [fields.text(n, "names") for n in nodes], [n.start_mark.line + 1 for n in nodes]


def _check_count(fields: _Fields, count: int) -> None:
    node = fields.get("nc")
    if node is not None and fields.integer(node, "nc") != count:
        raise fields.error(f"not the number of names, {count}", node, "nc", found=fields.integer(node, "nc"))


def _keypoint_values(fields: _Fields) -> int:
    node = fields.get("kpt_shape")
    if node is None:
        return 0
    if not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
        raise fields.error("expected [number of keypoints, 2 or 3]", node, "kpt_shape")
    count, values = (fields.integer(n, "kpt_shape") for n in node.value)
    return count * values


def _base(fields: _Fields) -> str:
    """The folder that `path` names, if it exists below the folder of the file; otherwise that folder itself."""
    node = fields.get("path")
    text = "." if node is None else fields.text(node, "path")
    if text.strip() in ("", ".", "./"):
        return "."
    folder = fields.path.parent
    try:
        name = relative_name(text)
        if os.path.isdir(folder / name):
            return name
    except BadItem:
        pass
    if Path(text) != folder.resolve():
        used = f"the splits are read relative to {folder}"
        notice(f"{fields.path}: `path` ({text!r}) is not a folder below that of the file: {used}")
    return "."


def _sources(fields: _Fields, split: str, base: str) -> list[str]:
    """Paths of the folders and lists of a split, relative to the folder of the file."""
    node = fields.get(split)
    if node is None:
        known = [key for key in ("train", "val", "valid", "test") if fields.get(key) is not None]
        fix = "add the key, or name the keys of the splits: datasets.NAME.splits"
        raise fields.error("required key is missing", node, split, expected=known, fix=fix)
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        raise fields.error("names no folder or list of images", node, split)
    return list(dict.fromkeys(_source(fields, split, base, n) for n in nodes))


def _source(fields: _Fields, split: str, base: str, node: yaml.Node) -> str:
    folder = fields.path.parent.resolve()
    text = fields.text(node, split).strip().replace("\\", "/")
    if text == str(folder) or text.startswith(f"{folder}/"):
        text, base = text[len(str(folder)) :].strip("/") or ".", "."
    text = text.removeprefix("../")  # exports of Roboflow begin with it
    try:
        name = base if text in (".", "./") else os.path.normpath(f"{base}/{relative_name(text)}")
    except BadItem as error:
        fix = f"use a path relative to {folder}; the images must be below it"
        raise fields.error(f"{error.reason}: {error.detail}", node, split, fix=fix) from error
    if not os.path.isdir(folder / name) and not (name.lower().endswith(".txt") and os.path.isfile(folder / name)):
        expected = "a folder of images, or a .txt list of them"
        raise fields.error("not found", node, split, expected=expected, found=str(folder / name))
    return name
