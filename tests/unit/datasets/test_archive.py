"""Zip archives that are unsafe, broken, or hold something else."""

import os
import random
import stat
import zipfile

import pytest
from dataset_cases import zipped

from coordexp.datasets.archive import extract
from coordexp.runtime.errors import DownloadError


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", link("a/evil")])
def test_an_unsafe_archive_is_refused_whole(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/good", b"x")
        archive.writestr(name, b"/etc/passwd")
    with pytest.raises(DownloadError, match="unsafe archive"):
        extract(path, tmp_path / "out", ["a"])
    assert not (tmp_path / "out").exists()


def test_a_broken_archive_is_a_clear_error(tmp_path):
    path = tmp_path / "bad.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(DownloadError, match="damaged zip archive"):
        extract(path, tmp_path, ["a"])
    damaged = bytearray(zipped({"a/data": os.urandom(5000)}))
    damaged[200] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DownloadError, match="CRC"):
        extract(path, tmp_path / "out", ["a"])
    assert not list((tmp_path / "out" / "a").iterdir())


def test_an_archive_without_the_expected_files_lists_its_content(tmp_path):
    path = tmp_path / "other.zip"
    path.write_bytes(zipped({"other/1.jpg": b"x"}))
    with pytest.raises(DownloadError, match=r"none of the expected files.*train2017.*other"):
        extract(path, tmp_path / "out", ["train2017"])


@pytest.mark.parametrize(
    "names", [["a/x", "a/x"], ["a/x", "a/x/y"], ["a/x/y", "a/x"], ["a/" + "x" * 256], ["a/./x", "a/x"]], ids=str
)
def test_members_that_cannot_all_be_written_are_refused(tmp_path, names):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(DownloadError, match="archive"):
        extract(path, tmp_path / "out", ["a"])
    assert not (tmp_path / "out").exists()


def test_a_member_with_the_longest_name_is_extracted(tmp_path):
    path = tmp_path / "long.zip"
    path.write_bytes(zipped({"a/" + "x" * 255: b"x"}))
    assert extract(path, tmp_path / "out", ["a"]) == 1


def test_an_encrypted_archive_is_refused(tmp_path):
    path = tmp_path / "secret.zip"
    data = bytearray(zipped({"a/x": b"x"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(DownloadError, match="the archive is encrypted"):
        extract(path, tmp_path / "out", ["a"])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_changed_bytes_is_extracted_or_refused(tmp_path, method):
    rng, refused = random.Random(method), 0
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/é", b"content " * 40)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            extract(path, tmp_path / "out", ["a"], overwrite=True)
        except DownloadError:
            refused += 1
    assert refused > 100


def test_a_member_without_a_name_is_refused(tmp_path):
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/good", b"x")
        archive.writestr(nameless, b"x")
    with pytest.raises(DownloadError, match="an empty name"):
        extract(tmp_path / "a.zip", tmp_path / "out", ["a"])
