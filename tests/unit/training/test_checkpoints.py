"""Rotation keeps the newest complete checkpoints and the best one."""

import pytest

from coordexp.training.checkpoints import COMPLETION_MARKER, complete_checkpoints, rotate


@pytest.fixture
def folder(tmp_path):
    """Complete checkpoints of steps 2 to 10, and an incomplete one."""
    for step in range(2, 12, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / COMPLETION_MARKER).touch()
    (tmp_path / "checkpoint-12").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [2, 4, 6, 8, 10]),
        (0, None, [2, 4, 6, 8, 10]),
        (9, 2, [2, 4, 6, 8, 10]),
        (2, None, [8, 10]),
        (2, 4, [4, 10]),
        (3, 4, [4, 8, 10]),
        (1, 4, [4, 10]),
        (1, 10, [10]),
        (1, 3, [10]),
    ],
)
def test_the_newest_and_the_best_are_kept(folder, limit, best, kept):
    rotate(folder, limit, best)
    assert complete_checkpoints(folder) == [folder / f"checkpoint-{step}" for step in kept]
    assert (folder / "checkpoint-12").is_dir()


def test_rotating_an_empty_folder_does_nothing(tmp_path):
    rotate(tmp_path, 1, None)


def test_the_completion_marker_is_deleted_first(folder, monkeypatch):
    monkeypatch.setattr(
        "shutil.rmtree", lambda path, **_: None if not (path / COMPLETION_MARKER).exists() else pytest.fail(path)
    )
    rotate(folder, 1, None)
    assert complete_checkpoints(folder) == [folder / "checkpoint-10"]
