"""Expanding and merging announce the bytes that they write, and refuse to start without enough disk space."""

from __future__ import annotations

import collections
import re
import shutil
from pathlib import Path

import modeling_helpers as helpers
import pytest

from coordexp.modeling import merge, tiny, vocab
from coordexp.modeling import safetensors_io as shards
from coordexp.runtime import estimates
from coordexp.runtime.errors import SpaceError

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Folder with `base` (sharded, large enough for megabytes), `expanded`, and an `adapter` with offsets only."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.build(folder / "base", 3, **helpers.SMALL | {"hidden": 1024, "vocab_size": 1200})
    helpers.reshard(folder / "base", "1MB")
    vocab.expand(folder / "base", folder / "expanded")
    model = helpers.adapted(folder / "expanded", target_modules=r".*layers\.0\.self_attn\.k_proj")
    model.save_pretrained(folder / "adapter")
    return folder


def run(job: str, inputs: Path, out: Path) -> None:
    if job == "merge":
        merge.merge(inputs / "expanded", inputs / "adapter", out)
    else:
        vocab.expand(inputs / ("base" if job == "expand" else "expanded"), out)


@pytest.mark.parametrize(("job", "rewritten"), [("expand", 1), ("merge", 2), ("already expanded", 0)])
@pytest.mark.parametrize("linked", [True, False], ids=["same file system", "another"])
def test_what_is_announced_is_what_is_written(inputs, tmp_path, capsys, monkeypatch, job, rewritten, linked):
    if not linked:
        monkeypatch.setattr(estimates, "copied_bytes", lambda files, _folder: sum(f.stat().st_size for f in files))
        monkeypatch.setattr(shards, "link_or_copy", lambda source, target: shutil.copyfile(source, target) and "copy")
    run(job, inputs, tmp_path / "out")
    announced = capsys.readouterr().err
    found = re.search(r"(\d+) of (\d+) shards to write, about (\d+) MB on disk .* files are (linked|copied)", announced)
    assert found, announced
    files = list((tmp_path / "out").iterdir())
    written = sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
    total = sum(file.suffix == ".safetensors" for file in files)
    assert (int(found[1]), int(found[2]), found[4]) == (rewritten, total, "linked" if linked else "copied")
    assert written / 1e6 == pytest.approx(int(found[3]), abs=1)
    assert linked or int(found[3]) > 8


@pytest.mark.parametrize("job", ["expand", "merge"])
def test_without_space_nothing_is_written(inputs, tmp_path, monkeypatch, job):
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(10**12, 0, 1_000_000))
    with pytest.raises(SpaceError, match=f"not enough disk space for {job}; expected '.* MB free', found '1 MB'"):
        run(job, inputs, tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
    run("already expanded", inputs, tmp_path / "out")  # links need no space


def test_links_cost_nothing_and_copies_their_size(inputs):
    files = list(inputs.glob("base/*.safetensors"))
    assert estimates.copied_bytes(files, inputs / "missing" / "folder") == 0
    assert estimates.copied_bytes(files, "/proc") == sum(file.stat().st_size for file in files) > 0
