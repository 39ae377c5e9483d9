"""Images with the same bytes, in one split or in two, are reported or refused; records stay the same."""

import shutil
import zlib

import pytest
from dataset_cases import annotation_entry, convert_to, draw_image, image_entry, source_of, write_dataset

from coordexp.datasets.convert import ConvertOptions, convert
from coordexp.datasets.duplicate_images import KEYS
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import read_json, write_json

BOX = [40, 30, 60, 60]


def split(folder, names, shared=()):
    """A split of images of these names; those in `shared` have the same bytes in every folder."""
    images = [{**image_entry(n), "file_name": name} for n, name in enumerate(names, 1)]
    (folder / "images").mkdir(parents=True)
    for n, name in enumerate(names, 1):
        seed = 99 if name in shared else zlib.crc32(f"{folder.name}{n}".encode()) % 1000
        draw_image(images[n - 1]["width"], images[n - 1]["height"], seed).save(folder / "images" / name)
    return write_dataset(folder, images, [annotation_entry(n, n, BOX) for n in range(1, len(names) + 1)])


def convert_split(manifest, out, name, **options):
    """The statistics of a split of a run."""
    files = (out / f"{name}.jsonl", out / "images" / name)
    convert(manifest, *files, ConvertOptions(**options), 64, out / f"{name}.stats.json")
    return read_json(out / f"{name}.stats.json")


def test_copies_within_a_split_are_named_once_each(tmp_path, capfd):
    manifest = split(tmp_path / "train", ["a.jpg", "b.jpg", "c.png"])
    for copy in ("b.jpg", "c.png"):
        shutil.copy(tmp_path / "train/images/a.jpg", tmp_path / "train/images" / copy)
    stats = convert_to(manifest, tmp_path / "out/train")
    assert stats["duplicate_images"] == {"copies": {"images": 2, "examples": [["b.jpg", "a.jpg"], ["c.png", "a.jpg"]]}}
    text = "2 of 3 images have the same bytes as another one: b.jpg = a.jpg, c.png = a.jpg\n  -> remove the copies"
    assert f"warning: test/train: {text}" in capfd.readouterr().err


def test_images_of_two_splits_are_named_by_the_later_conversion(tmp_path, capfd):
    """Whatever their names are; the files of both splits do not depend on which was converted first."""
    out = tmp_path / "out"
    first = convert_split(split(tmp_path / "a", ["1.jpg", "x.jpg"], {"x.jpg"}), out, "train")
    manifest = split(tmp_path / "b", ["1.jpg", "2.jpg", "y.jpg"], {"y.jpg"})
    manifest.write_text(manifest.read_text().replace('"train"', '"val"'))
    second = convert_split(manifest, out, "val")
    assert "duplicate_images" not in first and "duplicate_images" not in second
    assert "test/val: 1 of 3 images are also in the split train: y.jpg\n  -> " in capfd.readouterr().err
    with pytest.raises(DataError, match=r"1 of 3 images are also in the split train"):
        convert_split(manifest, out, "val", on_duplicate="error")
    assert not (out / "val.jsonl").exists()


def test_duplicates_change_no_record_and_are_not_looked_for_on_request(tmp_path, capfd, monkeypatch):
    manifest = split(tmp_path / "train", ["a.jpg", "b.jpg"], {"a.jpg", "b.jpg"})
    convert_to(manifest, tmp_path / "out")
    capfd.readouterr()
    monkeypatch.setattr("coordexp.datasets.chunk_conversion.content_key", lambda file: pytest.fail("hashed"))
    stats = convert_to(manifest, tmp_path / "again", on_duplicate="ignore")
    assert "duplicate_images" not in stats and "same bytes" not in capfd.readouterr().err
    assert not list(tmp_path.glob(f"again/**/{KEYS}"))
    assert (tmp_path / "out/train.jsonl").read_bytes() == (tmp_path / "again/train.jsonl").read_bytes()


def test_images_that_no_record_names_are_no_duplicates(tmp_path):
    manifest = split(tmp_path / "train", ["a.jpg", "b.jpg"], {"a.jpg", "b.jpg"})
    content = (tmp_path / "train/annotations.json").read_text().replace('"image_id": 2', '"image_id": 1')
    (tmp_path / "train/annotations.json").write_text(content)
    manifest.unlink()
    write_json(manifest, source_of(tmp_path / "train/annotations.json", ["images"]))
    assert "duplicate_images" not in convert_to(manifest, tmp_path / "out", keep_empty=False)
