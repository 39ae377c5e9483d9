"""Names of image files: looked up in the folders of a dataset, and unique in the output folder."""

import unicodedata
from pathlib import Path

import pytest
from dataset_cases import convert_to, draw_image, write_dataset

from coordexp.datasets.images import ImageError, find_image, output_name
from coordexp.records import read_records
from coordexp.runtime.errors import DataError


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_names_are_looked_up_in_their_own_folder_first(tmp_path):
    folders = [str(tmp_path / "val2017"), str(tmp_path / "train2017")]
    for folder in folders:
        save(Path(folder) / "1.jpg", draw_image(8, 8))
    save(tmp_path / "train2017" / "deep" / "2.jpg", draw_image(8, 8))
    assert find_image("1.jpg", folders) == (0, "1.jpg")
    assert find_image("train2017/1.jpg", folders) == (1, "1.jpg")
    assert find_image("other/1.jpg", folders, from_url=True) == (0, "1.jpg")
    assert find_image("deep/2.jpg", folders) == (1, "deep/2.jpg")
    with pytest.raises(ImageError, match=r"other/1.jpg not found in .*val2017, .*train2017") as error:
        find_image("other/1.jpg", folders)
    assert error.value.reason == "missing image"


@pytest.mark.parametrize("name", ["../1.jpg", "a/../../1.jpg", "/etc/passwd", ""])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="invalid file name"):
        find_image(name, [str(tmp_path)])


def test_output_names_tell_formats_and_sources_apart(tmp_path):
    assert output_name("a.jpg", True, tmp_path) == "a.jpg"
    assert output_name("a.JPEG", True, tmp_path) == "a.JPEG"
    assert output_name("a.png", False, tmp_path) == "a.png"
    assert output_name("a.png", True, tmp_path) == "a.png.jpg"
    assert output_name("d/a.webp", False, tmp_path) == "d/a.webp.jpg"


def test_two_images_never_share_an_output_name(tmp_path):
    names = ["a.png", "a.png.jpg", "a.png.1.jpg", "a.png.2", "d/b.gif", "d/b.gif.jpg", "x" * 251 + ".png"]
    names += ["x" * 250 + "y.png", "é" * 125 + ".bmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    written = [output_name(name, True, tmp_path) for name in names]
    assert len(set(written)) == len(names)
    assert written[1] == "a.png.jpg"
    assert max(len(Path(name).name.encode()) for name in written) <= 255


def test_images_whose_names_differ_by_case_only_can_be_written_to_any_disk(tmp_path):
    names = ["a.png", "A.PNG", "b.png", "B.png.JPG", "cafe\u0301.jpg", "caf\u00e9.jpg", "d.jpg", "e.png", "e.png.jpg"]
    images = [{"id": i, "file_name": name, "width": 64, "height": 64} for i, name in enumerate(names, start=1)]
    convert_to(write_dataset(tmp_path, images), tmp_path / "out", max_blocks=1, min_blocks=1)
    records = list(read_records(tmp_path / "out" / "train.jsonl", "pixel"))
    written = [record.images[0] for record in records]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in written}) == len(names)
    assert [Path(name).name for name in written[6:]] == ["d.jpg", "e.png.1.jpg", "e.png.jpg"]
    for record, name in zip(records, names, strict=True):
        assert record.metadata.file_name == name and (tmp_path / "out" / record.images[0]).is_file()
