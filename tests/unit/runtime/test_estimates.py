"""What a stage says before it begins, and that a full disk is told before the work."""

import collections
import shutil
import zipfile

import pytest
import torch

from coordexp.datasets.archive import extract
from coordexp.runtime import estimates as plan
from coordexp.runtime.errors import SpaceError
from coordexp.runtime.http_download import fetch

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that are free."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(10**12, 0, size))


def test_a_stage_says_how_much_how_large_and_how_long(room, tmp_path, capsys):
    room(200_000_000_000)
    plan.announce("convert", 118_287, "images", folder=tmp_path / "new", size=45.12e9, rate=28.16, basis="of 16")
    assert capsys.readouterr().err == (
        "convert: 118,287 images, about 45.1 GB on disk (200.0 GB free), about 1:10:00 at 28.2 images/s (of 16)\n"
    )


def test_too_little_room_is_an_error_with_both_numbers(room, tmp_path):
    room(1_000_000_000)
    with pytest.raises(SpaceError, match=r"not enough disk for train; expected '1\.0 GB free', found '1\.0 GB'"):
        plan.need_space(tmp_path / "not" / "there", 0.99e9, "train")
    plan.need_space(tmp_path, 0.98e9, "train")


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert plan.free(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_a_download_that_does_not_fit_is_not_begun(room, tmp_path):
    from dataset_cases import serving

    room(500)
    with serving() as server:
        server.content["/file.bin"] = b"x" * 1000
        with pytest.raises(SpaceError, match=r"download file\.bin"):
            fetch(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert [p.name for p in tmp_path.iterdir() if p.stat().st_size > 0] == []


def test_an_archive_that_does_not_fit_is_not_unpacked(room, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.jpg", b"\0" * 100_000)
    room(50_000)
    with pytest.raises(SpaceError, match=r"not enough disk for extract a\.zip"):
        extract(tmp_path / "a.zip", tmp_path / "out", ["images"])
    assert not (tmp_path / "out").exists()


class Arguments:
    save_steps, save_total_limit = 500, 2


@pytest.mark.parametrize(
    ("every", "limit", "steps", "count"), [(500, 2, 950, 3), (500, 2, 5000, 4), (500, None, 5000, 11), (0.1, 2, 50, 4)]
)
def test_checkpoints_that_lie_on_disk_at_once(every, limit, steps, count):
    from coordexp.training.ms_swift.time_estimate import checkpoint_count

    args = Arguments()
    args.save_steps, args.save_total_limit = every, limit
    assert checkpoint_count(args, steps) == count


def test_bytes_of_a_checkpoint_are_those_of_what_trains():
    from coordexp.training.ms_swift.time_estimate import checkpoint_bytes

    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 1, bias=False))
    model[0].weight.requires_grad_(False)
    assert checkpoint_bytes(model) == 400 + 40 + 2 * 40
    model.peft_config = {}
    assert checkpoint_bytes(model) == 3 * 40


def test_a_conversion_is_measured_on_images_from_all_over_it(room, tmp_path, capsys):
    from coordexp.datasets.conversion_estimate import forecast

    room(10**12)
    taken = []

    def prepare(i, scratch):
        taken.append(i)
        (tmp_path / scratch / f"{i}.jpg").write_bytes(b"x" * 250_000)

    forecast(160_000, 100_000, 4, tmp_path / "images", prepare)
    assert taken == [10_000 * n for n in range(16)]
    assert "convert: 100,000 images, about 25.0 GB on disk (1,000.0 GB free), about 0:" in capsys.readouterr().err
    assert list((tmp_path / "images").iterdir()) == []
    room(24 * 10**9)
    with pytest.raises(SpaceError, match="not enough disk for convert"):
        forecast(160_000, 100_000, 4, tmp_path / "images", prepare)


def test_linked_images_take_no_room(room, tmp_path, capsys):
    from coordexp.datasets.conversion_estimate import forecast

    room(10**9)
    (tmp_path / "source.jpg").write_bytes(b"x" * 250_000)
    link = lambda i, scratch: (tmp_path / scratch / f"{i}.jpg").hardlink_to(tmp_path / "source.jpg")  # noqa: E731
    forecast(100_000, 100_000, 1, tmp_path / "images", link)
    assert "about 0 MB on disk" in capsys.readouterr().err


def test_a_long_conversion_says_what_it_will_take_and_changes_nothing(shapes_data, tmp_path, monkeypatch, capsys):
    from coordexp.datasets import conversion_estimate as forecast
    from coordexp.datasets import convert

    monkeypatch.setattr(forecast, "LONG", 10)
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
