"""data.yaml: what is missing, repeated or of the wrong kind is an error with file, line and field."""

import pytest
from folder_cases import write

from coordexp.datasets.formats.data_yaml import read_data_yaml
from coordexp.runtime.errors import DataError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"data\.yaml: not a data\.yaml"),
        ("- a\n", "not a data.yaml"),
        ("names: [a]\n", r"data\.yaml: train: required key is missing"),
        ("train: images\n", r"names: required key is missing"),
        ("train: images\nnames: [a,\n", r"data\.yaml:\d: not YAML"),
        ("train: images\nnames: [cat, dog, Cat]\n", r"data\.yaml:2: names\[2\]: two categories have the same name"),
        ("train: images\nnames:\n - black_cat\n - black cat\n", r"data\.yaml:4: names\[1\]: two categories"),
        ("train: images\nnames: [a, '']\n", r"names\[1\]: the category has no name"),
        ("train: images\nnames: []\n", "no categories"),
        ("train: images\nnames: cat\n", "expected the class names"),
        ("train: images\nnames: [[a]]\n", "expected text"),
        ("train: images\nnames: {0: a, 2: b}\n", "class indices are missing"),
        ("train: images\nnames: {a: 0}\n", "not a class index.*'a'"),
        ("train: images\nnames: {0: a, 0: b}\n", "'0' is repeated"),
        ("train: images\ntrain: other\nnames: [a]\n", r"data\.yaml:2: the key 'train' is repeated"),
        ("train: images\nnames: [a]\nnc: 3\n", r"data\.yaml:3: nc: not the number of names, 1; found 3"),
        ("train: nowhere\nnames: [a]\n", r"data\.yaml:1: train: not found"),
        ("train: ../../etc\nnames: [a]\n", r"train: path outside the folder"),
        ("train: /etc\nnames: [a]\n", r"train: path outside the folder"),
        ("train: []\nnames: [a]\n", "names no folder"),
        ("train: images\nnames: [a]\nkpt_shape: 3\n", "kpt_shape: expected"),
        ("train: images\nnames: &a [*a]\n", "expected text"),
        ("[" * 5000, "nested too deeply"),
        (b"names: [\xe4]\n", r"data\.yaml:1: not UTF-8"),
        (b"names: \x00\n", "not a text file"),
    ],
)
def test_invalid_files(tmp_path, text, words):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=words):
        read_data_yaml(write(tmp_path / "data.yaml", text), "train")


def test_names_are_text_as_written(tmp_path):
    (tmp_path / "images").mkdir()
    path = write(tmp_path / "data.yaml", "train: images\nnames: [yes, 007, null, 1.0]\n")
    names = [category["name"] for category in read_data_yaml(path, "train").categories]
    assert names == ["yes", "007", "null", "1.0"]


def test_an_unusable_path_is_told(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    read_data_yaml(write(tmp_path / "data.yaml", "path: ../datasets\ntrain: images\nnames: [a]\n"), "train")
    assert "`path` ('../datasets') is not a folder below" in capsys.readouterr().err
