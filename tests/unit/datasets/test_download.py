"""Stage `download`: which files a split reads, folders of one's own, changes of annotations, and no network."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import yaml
from dataset_cases import serving, zipped
from download_cases import annotation_bytes, jpeg, lvis, paths_of, run, serving_lvis

from coordexp.datasets.convert import ConvertOptions, convert
from coordexp.datasets.download import local_annotations_sha256, provide
from coordexp.datasets.source import load_source
from coordexp.records import read_records
from coordexp.runtime.errors import ConfigError, DataError, DownloadError
from coordexp.runtime.io import sha256_file


@pytest.fixture
def server():
    with serving_lvis() as running:
        yield running


def test_a_split_downloads_only_its_own_files(server, tmp_path):
    source, raw = run(lvis(server), tmp_path, "train")
    assert paths_of(server) == ["/train.json.zip", "/train2017.zip"]
    assert source.image_dirs == ["raw/images/train2017"]
    assert sorted(p.name for p in (raw / "images" / "train2017").iterdir()) == ["000000000001.jpg", "000000000002.jpg"]
    assert (
        source.annotations_sha256 == hashlib.sha256((raw / "annotations/lvis_v1_train.json").read_bytes()).hexdigest()
    )
    assert not list(raw.rglob("*.zip"))


def test_one_archive_provides_a_whole_dataset_from_a_folder_of_its_own(server, tmp_path):
    config = Path(__file__).parents[3] / "config" / "config.yaml"
    entry = yaml.safe_load(config.read_text())["datasets"]["bccd"]
    xml = "<annotation><size><width>64</width><height>64</height></size></annotation>"
    server.content["/repository.zip"] = zipped(
        {
            "repository-master/README.md": b"",
            "repository-master/BCCD/Annotations/a.xml": xml.encode(),
            "repository-master/BCCD/JPEGImages/a.jpg": jpeg(1),
            **{f"repository-master/BCCD/ImageSets/Main/{name}.txt": b"a\n" for name in ("train", "val", "test")},
        }
    )
    url = f"{server.url}/repository.zip"
    entry["downloads"] = {".": {"url": url, "archive_folder": "repository-master/BCCD"}}
    for split in ("train", "test"):
        source, raw = run(entry, tmp_path, split, "bccd")
        assert source.image_dirs == ["raw/JPEGImages"] and (raw / "JPEGImages/a.jpg").is_file()
        assert [i["file_name"] for i in json.loads((raw / f"{split}.annotations.json").read_text())["images"]] == [
            "a.jpg"
        ]
    assert paths_of(server) == ["/repository.zip"] and not list(raw.rglob("README.md"))


def test_lvis_val_has_images_in_both_folders(server, tmp_path):
    source, _ = run(lvis(server), tmp_path, "val")
    assert paths_of(server) == ["/train2017.zip", "/val.json.zip", "/val2017.zip"]
    assert source.image_dirs == ["raw/images/val2017", "raw/images/train2017"]
    assert source.format == "lvis"
    assert load_source(tmp_path / "lvis" / "val.source.json") == source


def test_what_was_downloaded_can_be_converted(server, tmp_path):
    """LVIS names images by URL: `train2017/...` must not be taken for an image of val2017, nor the other way."""
    run(lvis(server), tmp_path, "val")
    manifest, out = tmp_path / "lvis" / "val.source.json", tmp_path / "out"
    convert(manifest, out / "val.jsonl", out / "images", ConvertOptions(), 4, out / "stats.json")
    records = list(read_records(out / "val.jsonl", "pixel"))
    assert [r.images[0] for r in records] == ["images/train2017/000000000002.jpg", "images/val2017/000000000003.jpg"]
    assert [r.metadata.file_name for r in records] == ["train2017/000000000002.jpg", "val2017/000000000003.jpg"]
    assert (out / records[0].images[0]).read_bytes() == jpeg(2)  # 64 x 64 is four tiles: linked as it is


def test_existing_files_are_not_downloaded_again(server, tmp_path):
    entry = lvis(server)
    run(entry, tmp_path, "train")
    run(entry, tmp_path, "train")
    run(entry, tmp_path, "val")
    assert paths_of(server) == ["/train.json.zip", "/train2017.zip", "/val.json.zip", "/val2017.zip"]


def test_one_archive_of_several_splits_is_fetched_once(server, tmp_path):
    files = {f"annotations/instances_{s}2017.json": annotation_bytes((3, "val2017")) for s in ("train", "val")}
    server.content["/both.zip"] = zipped({**files, "annotations/captions_val2017.json": b"{}"})
    entry = {
        "format": "coco",
        "annotations": {"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"},
        "image_dirs": {"train": ["images/val2017"], "val": ["images/val2017"]},
        "downloads": {
            "annotations": {"url": f"{server.url}/both.zip"},
            "images/val2017": {"url": f"{server.url}/val2017.zip"},
        },
    }
    for split in ("val", "train"):
        _, raw = run(entry, tmp_path, split, "coco")
    assert paths_of(server) == ["/both.zip", "/val2017.zip"]
    assert sorted(p.name for p in (raw / "annotations").iterdir()) == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]


def test_without_a_network_the_error_names_the_files_and_folders(tmp_path):
    with serving() as gone:
        entry = lvis(gone)
    with pytest.raises(DownloadError) as error:
        run(entry, tmp_path)
    text = str(error.value)
    for part in (
        "datasets.lvis.root",
        "annotations/lvis_v1_val.json",
        "images/val2017",
        "images/train2017",
        str(tmp_path),
    ):
        assert part in text


def test_files_provided_by_hand_need_no_network(tmp_path):
    with serving() as gone:
        entry = lvis(gone)
    raw = tmp_path / "lvis" / "raw"
    for folder in ("annotations", "images/val2017", "images/train2017"):
        (raw / folder).mkdir(parents=True)
    (raw / "annotations/lvis_v1_val.json").write_bytes(annotation_bytes((3, "val2017")))
    source, _ = run(entry, tmp_path)
    assert source.annotations == "raw/annotations/lvis_v1_val.json"


def test_a_user_s_own_root_is_read_in_place(server, tmp_path):
    own = tmp_path / "mine"
    (own / "images/train2017").mkdir(parents=True)
    (own / "annotations").mkdir()
    (own / "annotations/lvis_v1_train.json").write_bytes(annotation_bytes((1, "train2017")))
    source, raw = run({**lvis(server), "root": str(own)}, tmp_path, "train")
    assert server.requests == []
    assert not raw.exists()
    assert source.annotations == str(own / "annotations/lvis_v1_train.json")
    assert source.image_dirs == [str(own / "images/train2017")]


def test_missing_files_below_a_root_are_named(server, tmp_path):
    with pytest.raises(DataError, match=r"mine.*datasets.lvis.root.*annotations/lvis_v1_train.json.*images/train2017"):
        run({**lvis(server), "root": str(tmp_path / "mine")}, tmp_path, "train")


@pytest.fixture
def own(tmp_path):
    """A folder of the user's own, its entry, the annotations and the manifest that was written for them."""
    path = tmp_path / "mine" / "val.json"
    (path.parent / "images").mkdir(parents=True)
    path.write_bytes(annotation_bytes((1, "images")))
    entry = {"format": "coco", "root": str(path.parent), "annotations": {"val": "val.json"}}
    entry |= {"image_dirs": {"val": ["images"]}}
    run(entry, tmp_path, name="mine")
    manifest = tmp_path / "mine" / "val.source.json"
    os.utime(manifest, ns=(time.time_ns() + 10**9,) * 2)
    return entry, path, manifest


def test_changed_annotations_below_a_root_are_noticed(own, monkeypatch):
    entry, path, manifest = own
    first = load_source(manifest).annotations_sha256
    with monkeypatch.context() as patch:
        patch.setattr("coordexp.datasets.download.sha256_file", lambda _: pytest.fail("read again"))
        assert local_annotations_sha256("mine", entry, "val", manifest) == first
    os.utime(manifest, (1.7e9, 1.7e9))
    assert local_annotations_sha256("mine", entry, "val", manifest) == first, "touched, the same"
    old = path.stat()
    (path.parent / "other.json").write_bytes(annotation_bytes((2, "images")))
    os.utime(path.parent / "other.json", ns=(old.st_atime_ns, old.st_mtime_ns - 10**12))
    os.utime(manifest, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    (path.parent / "other.json").replace(path)
    assert local_annotations_sha256("mine", entry, "val", manifest) == sha256_file(path) != first, (
        "an older file moved there"
    )


def test_the_manifest_keeps_the_hash_of_missing_annotations(own):
    entry, path, manifest = own
    first = load_source(manifest).annotations_sha256
    path.unlink()
    assert local_annotations_sha256("mine", entry, "val", manifest) == first
    assert local_annotations_sha256("mine", {**entry, "root": str(path.parent / "elsewhere")}, "val", manifest) is None
    assert local_annotations_sha256("mine", {**entry, "root": None}, "val", manifest) is None
    manifest.write_text("{")
    assert local_annotations_sha256("mine", entry, "val", manifest) is None


def test_an_unknown_format_or_split_is_a_config_error(server, tmp_path):
    with pytest.raises(ConfigError, match=r"datasets.lvis.format.*'unknown'"):
        run({**lvis(server), "format": "unknown"}, tmp_path)
    with pytest.raises(ConfigError, match=r"datasets.lvis.annotations.*'test'"):
        run(lvis(server), tmp_path, "test")
    entry = lvis(server)
    del entry["downloads"]["images/val2017"]
    with pytest.raises(ConfigError, match=r"no download provides.*images/val2017"):
        run(entry, tmp_path)
    entry["downloads"]["images/val2017"] = {"urll": "x"}
    with pytest.raises(ConfigError, match=r"datasets\.lvis\.downloads\.images/val2017"):
        run(entry, tmp_path)


def test_shapes_are_generated_beside_the_manifest(tmp_path):
    entry = {"format": "shapes", "image_size": 64, "objects": [1, 2], "splits": {"val": {"count": 3, "seed": 5}}}
    source, raw = run(entry, tmp_path, "val", "shapes")
    assert (source.dataset, source.format, source.image_dirs) == ("shapes", "shapes", ["raw/images/val"])
    assert len(list((raw / "images" / "val").glob("*.png"))) == 3


def test_an_edit_is_noticed_although_the_manifest_is_from_the_future(tmp_path):
    (tmp_path / "own" / "images").mkdir(parents=True)
    path, manifest = tmp_path / "own" / "plain.json", tmp_path / "train.source.json"
    path.write_bytes(annotation_bytes((1, "images")))
    entry = {"format": "coco", "root": str(tmp_path / "own"), "annotations": {"train": "plain.json"}}
    entry["image_dirs"] = {"train": ["images"]}
    provide("own", entry, "train", tmp_path / "raw", manifest)
    os.utime(manifest, (time.time() + 1e6,) * 2)
    time.sleep(0.05)
    path.write_bytes(annotation_bytes((2, "images")))
    assert local_annotations_sha256("own", entry, "train", manifest) == sha256_file(path)
