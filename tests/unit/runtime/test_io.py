"""Atomic writing: permissions of what appears under the final name."""

import os
import stat

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from coordexp.datasets.images import prepare_image
from coordexp.runtime import io


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_outputs_have_the_permissions_of_the_umask(tmp_path, umask):
    io.write_json(tmp_path / "a.json", {})
    with io.atomic_dir(tmp_path / "folder") as folder:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "inner").mkdir()
        (folder / "inner/b.txt").touch(0o600)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.bmp")
    prepare_image(tmp_path / "a.bmp", tmp_path / "b.jpg", (64, 64), (32, 32), 90)
    assert set(modes(tmp_path).values()) == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_the_original_of_a_hard_link_keeps_its_permissions(tmp_path):
    (tmp_path / "original").touch(0o600)
    with io.atomic_dir(tmp_path / "folder") as folder:
        os.link(tmp_path / "original", folder / "link")
    assert set(modes(tmp_path).values()) == {0o600}
