"""Conversion in chunks: several processes and jobs, killed runs, damaged chunks. The result is always the same."""

import multiprocessing
import os
import signal
import time

import pytest
from dataset_cases import convert_to, write_dataset

from coordexp.datasets import chunk_cache, chunk_conversion
from coordexp.datasets.convert import ConvertOptions, convert_shard
from coordexp.runtime import tuning
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_json


def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    manifest = write_dataset(tmp_path)
    for workers in (1, 3):
        convert_to(manifest, tmp_path / str(workers), num_workers=workers)
    for name in ("train.jsonl", "stats.json", "images/images/0003.jpg"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "3").iterdir()) == ["images", "stats.json", "train.jsonl"]


def convert_own_shard(manifest, out, shard, shards):
    tuning.IMAGES_PER_CHUNK = 2
    convert_shard(manifest, out / "train.jsonl", out / "images", ConvertOptions(), 64, shard, shards)


def test_shards_converted_concurrently_give_the_same_result(tmp_path, monkeypatch):
    manifest, out = write_dataset(tmp_path), tmp_path / "out"
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    convert_to(manifest, tmp_path / "whole")
    (out / "images").mkdir(parents=True)
    write_json(out / "images" / ".images.json", {"dataset": "test", "split": "train", "code": "of an earlier version"})
    (out / "images" / "0001.jpg").write_text("made by it")
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=convert_own_shard, args=(manifest, out, n, 2)) for n in (1, 2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0] and not (out / "train.jsonl").exists()
    monkeypatch.setattr(chunk_conversion, "read_images", None)  # nothing is left to convert
    convert_to(manifest, out)
    for name in ("train.jsonl", "stats.json", "images/images/0003.jpg"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["images", "stats.json", "train.jsonl"]


def test_a_missing_shard_is_converted_when_the_shards_are_joined(tmp_path, monkeypatch):
    manifest, out = write_dataset(tmp_path), tmp_path / "out"
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    convert_own_shard(manifest, out, 2, 3)
    assert len(list(out.rglob("*.chunk"))) == 1
    convert_to(manifest, out)
    convert_to(manifest, tmp_path / "whole")
    assert (out / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()


def convert_slowly(manifest, out):
    """In a process of its own: image by image, a while for each."""
    tuning.IMAGES_PER_CHUNK = 2
    prepare = chunk_conversion.prepare_image

    def slow(*args, **options):
        time.sleep(0.15)
        return prepare(*args, **options)

    chunk_conversion.prepare_image = slow
    convert_to(manifest, out)


def test_a_killed_run_resumes_after_its_finished_chunks(tmp_path, monkeypatch):
    manifest = write_dataset(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    convert_to(manifest, whole)
    process = multiprocessing.get_context("fork").Process(target=convert_slowly, args=(manifest, out))
    process.start()
    deadline = time.monotonic() + 20
    while not (out / "images" / "images" / "0003.jpg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "train.jsonl").exists()
    made = {p.name: p.stat().st_mtime_ns for p in (out / "images" / "images").glob("0*.jpg")}
    assert 3 <= len(made) < 6
    opened = []
    read_images = chunk_conversion.read_images
    monkeypatch.setattr(
        chunk_conversion, "read_images", lambda fd, i, a, b: opened.append(a) or read_images(fd, i, a, b)
    )
    convert_to(manifest, out)
    assert opened == [2, 4]  # the first chunk was whole
    for name, before in made.items():
        assert (out / "images" / "images" / name).stat().st_mtime_ns == before
    assert (out / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()
    assert (out / "stats.json").read_bytes() == (whole / "stats.json").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_chunk_is_converted_again(tmp_path, monkeypatch, damage):
    """Chunks do not wait for the disk: a machine that loses power may leave any of these."""
    manifest, out = write_dataset(tmp_path), tmp_path / "out"
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    convert_to(manifest, tmp_path / "whole")
    with monkeypatch.context() as stopped:
        stopped.setattr(chunk_cache, "join_chunks", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_to(manifest, out)
    (part,) = out.rglob("000001.chunk")
    data = part.read_bytes()
    spoiled = {"cut": data[:-20], "empty": b"", "changed": data.replace(b'"cat"', b'"cow"')}[damage]
    assert spoiled != data
    part.write_bytes(spoiled)
    opened = []
    read_images = chunk_conversion.read_images
    monkeypatch.setattr(
        chunk_conversion, "read_images", lambda fd, i, a, b: opened.append(a) or read_images(fd, i, a, b)
    )
    convert_to(manifest, out)
    assert opened == [2]
    for name in ("train.jsonl", "stats.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_worker_is_an_error(tmp_path, monkeypatch):
    manifest = write_dataset(tmp_path)
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    prepare = chunk_conversion.prepare_image

    def killed(source, *rest, **options):
        if source.endswith("0003.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(source, *rest, **options)

    monkeypatch.setattr(chunk_conversion, "prepare_image", killed)
    with pytest.raises(DataError, match=r"process was killed") as error:
        convert_to(manifest, tmp_path / "out", num_workers=2)
    assert "annotations.json" in str(error.value)
    assert "set fewer workers" in str(error.value)
    monkeypatch.setattr(chunk_conversion, "prepare_image", prepare)
    assert convert_to(manifest, tmp_path / "out", num_workers=2)["images"]["written"] == 6


def test_an_error_in_a_worker_keeps_its_message(tmp_path):
    manifest = write_dataset(tmp_path)
    (tmp_path / "images" / "0005.jpg").unlink()
    with pytest.raises(DataError, match=r"0005\.jpg.*missing image"):
        convert_to(manifest, tmp_path / "out", num_workers=2)


def test_chunks_of_another_configuration_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "IMAGES_PER_CHUNK", 2)
    manifest = write_dataset(tmp_path)
    monkeypatch.setattr(chunk_cache, "join_chunks", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_to(manifest, tmp_path / "out")
    monkeypatch.undo()
    convert_to(manifest, tmp_path / "out", 16, desc="raw")
    convert_to(manifest, tmp_path / "fresh", 16, desc="raw")
    for name in ("train.jsonl", "images/images/0001.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
