"""A folder that CoordExp did not write is never replaced."""

import os

import pytest

from coordexp.runtime.errors import ConfigError
from coordexp.runtime.output_guard import output_dir, refuse_foreign_folder


def write(path, stage, text):
    with output_dir(path, stage) as folder:
        (folder / "content").write_text(text)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "merge_manifest.json", "folder/inside"])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and was not written by `train`"):
        write(tmp_path / "out", "train", "new")
    assert file.read_text() == "mine"


def test_absent_empty_and_earlier_outputs_are_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new/inside", "empty", "empty"):
        write(tmp_path / name, "merge", name)
        assert (tmp_path / name / "content").read_text() == name
    with pytest.raises(ConfigError, match="was not written by `train`"):
        write(tmp_path / "empty", "train", "another stage")
    old = tmp_path / "old"
    old.mkdir()
    (old / "merge_manifest.json").write_text("{}")
    write(old, "merge", "earlier version")


def test_files_links_and_the_current_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir()
    os.symlink("target", tmp_path / "link")
    with pytest.raises(ConfigError, match="is a file"):
        refuse_foreign_folder(tmp_path / "file", "train")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        refuse_foreign_folder(tmp_path / "link", "train")
    monkeypatch.chdir(tmp_path / "target")
    for current in (".", "..", tmp_path):
        with pytest.raises(ConfigError, match="is the current folder or contains it"):
            refuse_foreign_folder(current, "train")
