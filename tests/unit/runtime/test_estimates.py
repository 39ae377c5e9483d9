"""What a stage announces before it starts, and that one that does not fit on the disk is refused."""

import collections
import shutil
import zipfile

import pytest
import torch

from coordexp.datasets.archive import extract
from coordexp.runtime import estimates
from coordexp.runtime.errors import SpaceError
from coordexp.runtime.estimates import announce_measured
from coordexp.runtime.http_download import fetch

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def free_disk(monkeypatch):
    """Sets the number of free bytes."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(10**12, 0, size))


def test_count_size_and_time_are_announced(free_disk, tmp_path, capsys):
    free_disk(200_000_000_000)
    estimates.announce("convert", 118_287, "images", folder=tmp_path / "new", size=45.12e9, rate=28.16, basis="of 16")
    assert capsys.readouterr().err == (
        "convert: 118,287 images, about 45.1 GB on disk (200.0 GB free), about 1:10:00 at 28.2 images/s (of 16)\n"
    )


def test_too_little_space_is_an_error_with_both_numbers(free_disk, tmp_path):
    free_disk(1_000_000_000)
    with pytest.raises(SpaceError, match=r"not enough disk space for train; expected '1\.0 GB free', found '1\.0 GB'"):
        estimates.require_space(tmp_path / "not" / "there", 0.99e9, "train")
    estimates.require_space(tmp_path, 0.98e9, "train")


def test_free_space_is_that_of_the_nearest_existing_folder(tmp_path):
    assert estimates.free_bytes(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_a_download_that_does_not_fit_is_not_started(free_disk, tmp_path):
    from dataset_cases import serving

    free_disk(500)
    with serving() as server:
        server.content["/file.bin"] = b"x" * 1000
        with pytest.raises(SpaceError, match=r"download file\.bin"):
            fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert [p.name for p in tmp_path.iterdir() if p.stat().st_size > 0] == []


def test_an_archive_that_does_not_fit_is_not_unpacked(free_disk, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.jpg", b"\0" * 100_000)
    free_disk(50_000)
    with pytest.raises(SpaceError, match=r"not enough disk space for extract a\.zip"):
        extract(tmp_path / "a.zip", tmp_path / "out", ["images"])
    assert not (tmp_path / "out").exists()


class Arguments:
    save_steps, save_total_limit = 500, 2


@pytest.mark.parametrize(
    ("every", "limit", "steps", "count"), [(500, 2, 950, 3), (500, 2, 5000, 4), (500, None, 5000, 11), (0.1, 2, 50, 4)]
)
def test_number_of_checkpoints_on_disk_at_once(every, limit, steps, count):
    from coordexp.training.ms_swift.time_estimate import checkpoint_count

    args = Arguments()
    args.save_steps, args.save_total_limit = every, limit
    assert checkpoint_count(args, steps) == count


def test_bytes_of_a_checkpoint():
    from coordexp.training.ms_swift.time_estimate import checkpoint_bytes

    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 1, bias=False))
    model[0].weight.requires_grad_(False)
    assert checkpoint_bytes(model) == 400 + 40 + 2 * 40
    model.peft_config = {}
    assert checkpoint_bytes(model) == 3 * 40


def test_a_conversion_is_measured_on_images_spread_over_the_split(free_disk, tmp_path, capsys):
    free_disk(10**12)
    taken = []

    def prepare(i, scratch):
        taken.append(i)
        (tmp_path / scratch / f"{i}.jpg").write_bytes(b"x" * 250_000)

    announce_measured("convert", "images", 160_000, 100_000, 4, tmp_path / "images", prepare)
    assert taken == [10_000 * n for n in range(16)]
    assert "convert: 100,000 images, about 25.0 GB on disk (1,000.0 GB free), about 0:" in capsys.readouterr().err
    assert list((tmp_path / "images").iterdir()) == []
    free_disk(24 * 10**9)
    with pytest.raises(SpaceError, match="not enough disk space for convert"):
        announce_measured("convert", "images", 160_000, 100_000, 4, tmp_path / "images", prepare)


def test_linked_images_need_no_space(free_disk, tmp_path, capsys):
    free_disk(10**9)
    (tmp_path / "source.jpg").write_bytes(b"x" * 250_000)
    link = lambda i, scratch: (tmp_path / scratch / f"{i}.jpg").hardlink_to(tmp_path / "source.jpg")  # noqa: E731
    announce_measured("convert", "images", 100_000, 100_000, 1, tmp_path / "images", link)
    assert "about 0 MB on disk" in capsys.readouterr().err


def test_a_long_conversion_is_announced_with_the_same_result(shapes_data, tmp_path, monkeypatch, capsys):
    from coordexp.datasets import convert

    monkeypatch.setattr(estimates, "MEASURED_FROM", 10)
    options, stats = convert.ConvertOptions(), tmp_path / "stats.json"
    source = shapes_data / "raw" / "train.source.json"
    convert.convert(source, tmp_path / "train.jsonl", tmp_path / "images" / "train", options, 9, stats)
    assert "convert: 24 images, about " in capsys.readouterr().err
    assert (tmp_path / "train.jsonl").read_bytes() == (shapes_data / "train.jsonl").read_bytes()
    assert (
        len(list((tmp_path / "images" / "train").rglob("*.jpg")))
        + len(list((tmp_path / "images" / "train").rglob("*.png")))
        == 24
    )
