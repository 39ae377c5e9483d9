"""Damaged JPEGs are found, and oddities that cost no pixel are accepted."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_cases import draw_image

from coordexp.datasets.images import ImageError, prepare_image
from coordexp.datasets.jpeg import decode_jpeg

SIZE = (160, 96)


def jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    draw_image(*SIZE).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_hole(data: bytes) -> bytes:
    middle = data.index(b"\xff\xda") + 300
    return data[:middle] + b"\0" * 60 + data[middle + 60 :]


def with_restart_markers_lost() -> bytes:
    data = jpeg(restart_marker_rows=1)
    marker = data.index(b"\xff\xd2")
    return data[:marker] + data[marker + 2 :]


ODDITIES = {
    "bytes between segments": lambda d: d[:20] + b"\0\x11\x22" + d[20:],
    "bytes before the scan": lambda d: d.replace(b"\xff\xda", b"\0" * 40 + b"\xff\xda", 1),
    "bytes before the end": lambda d: d[:-2] + b"\x11\x22" + d[-2:],
    "unknown JFIF version": lambda d: d.replace(b"JFIF\0\x01", b"JFIF\0\x09", 1),
    "unknown Adobe transform": lambda d: d[:2] + segment(0xEE, b"Adobe\0\x64" + b"\0" * 4 + b"\x05") + d[2:],
    "broken ICC profile": lambda d: d[:2] + segment(0xE2, b"ICC_PROFILE\0\x02\x01" + b"x" * 50) + d[2:],
    "broken EXIF data": lambda d: d[:2] + segment(0xE1, b"Exif\0\0garbage") + d[2:],
}


@pytest.mark.parametrize("name", ODDITIES)
@pytest.mark.parametrize("progressive", [False, True])
def test_oddities_of_the_file_are_not_damage_and_do_not_hide_it(tmp_path, name, progressive, capfd):
    data, path = jpeg(progressive=progressive), tmp_path / "a.jpg"
    path.write_bytes(ODDITIES[name](data))
    pixels, damage = decode_jpeg(path, cv2.IMREAD_COLOR)
    assert damage is None
    assert np.array_equal(pixels, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    path.write_bytes(ODDITIES[name](with_hole(data)))
    assert "Corrupt JPEG data" in decode_jpeg(path, cv2.IMREAD_COLOR)[1]
    assert capfd.readouterr().err.count("Corrupt") <= 1  # of the reference above


@pytest.mark.parametrize(
    "damaged",
    [
        with_hole(jpeg()),
        with_hole(jpeg(progressive=True)),
        with_restart_markers_lost(),
        jpeg()[:-2] + b"\x11" * 9 + b"\xff\xd9",
    ],
    ids=["hole", "hole, progressive", "lost restart marker", "scan cut short"],
)
def test_lost_data_are_damage(tmp_path, damaged):
    path = tmp_path / "a.jpg"
    path.write_bytes(damaged)
    assert decode_jpeg(path, cv2.IMREAD_COLOR)[1] is not None
    with pytest.raises(ImageError, match="Corrupt JPEG data"):
        prepare_image(path, tmp_path / "out.jpg", SIZE, (80, 48), 95)


@pytest.mark.parametrize("cut", [20, 800])
def test_a_missing_end_is_an_error(tmp_path, cut):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg()[:-cut])
    with pytest.raises(ImageError, match=r"unreadable|truncated"):
        prepare_image(path, tmp_path / "out.jpg", SIZE, (80, 48), 95)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["no end marker", "end marker"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_scan_that_stops_anywhere_is_an_error_in_an_image_that_is_only_linked(tmp_path, options, end):
    data, path = jpeg(**options)[:-2], tmp_path / "a.jpg"
    for length in range(2, len(data) - 8, len(data) // 25):
        path.write_bytes(data[:length] + end)
        with pytest.raises(ImageError) as error:
            prepare_image(path, tmp_path / "out.jpg", SIZE, SIZE, 95)
        assert error.value.reason == "unreadable image", length
    path.write_bytes(data + b"\xff\xd9")
    assert prepare_image(path, tmp_path / "out.jpg", SIZE, SIZE, 95) == "linked"


def test_a_file_without_a_header_is_no_endless_loop(tmp_path):
    path: Path = tmp_path / "a.jpg"
    for content in (b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xe0\0\0" * 9, b"no image"):
        path.write_bytes(content)
        assert decode_jpeg(path, cv2.IMREAD_COLOR)[0] is None
