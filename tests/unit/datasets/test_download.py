"""Stage `download`: archives, presence, the lock of hashes, folders of one's own, and no network."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from dataset_cases import answer, draw_image, serving, zipped

from coordexp.datasets.convert import ConvertOptions, convert
from coordexp.datasets.download import local_annotations_sha256, provide
from coordexp.datasets.source import load_source
from coordexp.records import read_records
from coordexp.runtime.errors import ConfigError, DataError, DownloadError
from coordexp.runtime.http_download import Policy
from coordexp.runtime.io import sha256_file

QUICK = Policy(attempts=2, timeout=2, first_wait=0.01, longest_wait=0.02)
CONFIG = Path(__file__).parents[3] / "config" / "config.yaml"


def annotation_bytes(*ids: tuple[int, str]) -> bytes:
    images = [{"id": i, "coco_url": f"http://x/{f}/{i:012d}.jpg", "width": 64, "height": 64} for i, f in ids]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return json.dumps(content).encode()


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    draw_image(64, 64, seed).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def server():
    """A small LVIS on the web: two annotation files, two folders of images."""
    with serving() as running:
        running.content = {
            "/train.json.zip": zipped({"lvis_v1_train.json": annotation_bytes((1, "train2017"))}),
            "/val.json.zip": zipped({"lvis_v1_val.json": annotation_bytes((2, "train2017"), (3, "val2017"))}),
            "/train2017.zip": zipped({f"train2017/{i:012d}.jpg": jpeg(i) for i in (1, 2)}),
            "/val2017.zip": zipped({f"val2017/{3:012d}.jpg": jpeg(3)}),
            "/plain.json": annotation_bytes((3, "val2017")),
        }
        yield running


def lvis(server) -> dict:
    """The entry of the shipped configuration with the URLs of the local server."""
    entry = yaml.safe_load(CONFIG.read_text())["datasets"]["lvis"]
    files = {
        "annotations/lvis_v1_train.json": "/train.json.zip",
        "annotations/lvis_v1_val.json": "/val.json.zip",
        "images/train2017": "/train2017.zip",
        "images/val2017": "/val2017.zip",
    }
    assert set(entry["downloads"]) == set(files)
    entry["downloads"] = {target: {"url": server.url + path} for target, path in files.items()}
    return entry


def run(entry, tmp_path, split="val", name="lvis"):
    raw = tmp_path / name / "raw"
    return provide(name, entry, split, raw, tmp_path / name / f"{split}.source.json", policy=QUICK), raw


def paths_of(server):
    return sorted(path for path, _ in server.requests)


def test_a_split_downloads_only_its_own_files(server, tmp_path):
    source, raw = run(lvis(server), tmp_path, "train")
    assert paths_of(server) == ["/train.json.zip", "/train2017.zip"]
    assert source.image_dirs == ["raw/images/train2017"]
    assert sorted(p.name for p in (raw / "images" / "train2017").iterdir()) == ["000000000001.jpg", "000000000002.jpg"]
    assert (
        source.annotations_sha256 == hashlib.sha256((raw / "annotations/lvis_v1_train.json").read_bytes()).hexdigest()
    )
    assert not list(raw.rglob("*.zip"))


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


def test_a_file_that_is_not_an_archive_is_not_unpacked(server, tmp_path):
    entry = lvis(server)
    entry["downloads"]["annotations/lvis_v1_val.json"] = {"url": f"{server.url}/plain.json"}
    _, raw = run(entry, tmp_path)
    assert (raw / "annotations/lvis_v1_val.json").read_bytes() == server.content["/plain.json"]


def test_the_hash_of_the_first_download_is_enforced(server, tmp_path):
    entry = lvis(server)
    _, raw = run(entry, tmp_path, "train")
    lock = json.loads((raw / "downloads.lock.json").read_text())
    assert lock[f"{server.url}/train2017.zip"] == hashlib.sha256(server.content["/train2017.zip"]).hexdigest()
    (raw / "annotations" / "lvis_v1_train.json").unlink()
    server.content["/train.json.zip"] = zipped({"lvis_v1_train.json": b"{}"})
    with pytest.raises(DownloadError, match="sha256"):
        run(entry, tmp_path, "train")


def test_the_hash_of_the_configuration_is_enforced(server, tmp_path):
    entry = lvis(server)
    entry["downloads"]["images/val2017"]["sha256"] = "0" * 64
    with pytest.raises(DownloadError, match=r"val2017.zip: sha256: wrong content"):
        run(entry, tmp_path)


def test_a_new_url_replaces_the_files_of_the_old_one(server, tmp_path):
    entry = lvis(server)
    _, raw = run(entry, tmp_path, "train")
    server.content["/newer.zip"] = zipped({"train2017/000000000001.jpg": jpeg(1)[::-1]})
    entry["downloads"]["images/train2017"] = {"url": f"{server.url}/newer.zip"}
    run(entry, tmp_path, "train")
    assert (raw / "images/train2017/000000000001.jpg").read_bytes() == jpeg(1)[::-1]


def test_interrupted_unpacking_is_completed(server, tmp_path, monkeypatch):
    """The second image fails: a folder with half the images must not pass for a whole one."""
    import coordexp.datasets.archive as archive

    whole = archive._write

    def failing(opened, member, target):
        if target.name.endswith("2.jpg"):
            raise KeyboardInterrupt
        whole(opened, member, target)

    monkeypatch.setattr(archive, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        run(lvis(server), tmp_path, "train")
    monkeypatch.undo()
    written = tmp_path / "lvis" / "raw" / "images" / "train2017"
    before = (written / "000000000001.jpg").stat().st_mtime_ns
    run(lvis(server), tmp_path, "train")
    assert (written / "000000000002.jpg").read_bytes() == jpeg(2)
    assert (written / "000000000001.jpg").stat().st_mtime_ns == before
    assert paths_of(server).count("/train2017.zip") == 1


KILLED = """
import os, pathlib, signal
from coordexp.datasets.download import provide

usual = pathlib.Path.{method}

def act(path, *arguments, **options):
    done = usual(path, *arguments, **options)
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

pathlib.Path.{method} = act
provide("lvis", {entry!r}, "train", {raw!r}, {manifest!r})
"""


def killed(entry, tmp_path, method, condition):
    """Provide the training split in a process that is killed after a method of a path."""
    places = {"raw": str(tmp_path / "lvis/raw"), "manifest": str(tmp_path / "lvis/train.source.json")}
    code = KILLED.format(method=method, condition=condition, entry=entry, **places)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_a_kill_while_unpacking_leaves_no_temporary_files(server, tmp_path):
    killed(lvis(server), tmp_path, "open", "path.name.endswith('1.jpg.part')")
    _, raw = run(lvis(server), tmp_path, "train")
    assert sorted(p.name for p in (raw / "images/train2017").iterdir()) == ["000000000001.jpg", "000000000002.jpg"]
    assert paths_of(server).count("/train2017.zip") == 1


def test_a_kill_after_unpacking_downloads_nothing_again(server, tmp_path):
    killed(lvis(server), tmp_path, "unlink", "path.name.endswith('-train2017.zip')")
    run(lvis(server), tmp_path, "train")
    assert paths_of(server).count("/train2017.zip") == 1


def test_a_file_is_known_as_fetched_before_it_gets_its_name(server, tmp_path):
    """Killed then: it is not taken for the user's own, whose address does not matter."""
    entry = lvis(server)
    entry["downloads"]["annotations/lvis_v1_train.json"] = {"url": f"{server.url}/plain.json"}
    killed(entry, tmp_path, "replace", "arguments[0].name == 'lvis_v1_train.json'")
    _, raw = run(entry, tmp_path, "train")
    assert f"{server.url}/plain.json" in json.loads((raw / "downloads.lock.json").read_text())
    assert paths_of(server).count("/plain.json") == 1
    run(lvis(server), tmp_path, "train")
    assert paths_of(server).count("/train.json.zip") == 1


def test_an_archive_cut_off_on_the_server_can_be_replaced(server, tmp_path):
    """Its hash is not that of the dataset: the whole archive must be welcome later."""
    whole = server.content["/train2017.zip"]
    server.content["/train2017.zip"] = whole[: len(whole) // 2]
    with pytest.raises(DownloadError, match="damaged zip archive"):
        run(lvis(server), tmp_path, "train")
    next((tmp_path / "lvis/raw/.downloads").glob("*-train2017.zip")).unlink()  # as the message says
    server.content["/train2017.zip"] = whole
    _, raw = run(lvis(server), tmp_path, "train")
    lock = json.loads((raw / "downloads.lock.json").read_text())
    assert lock[f"{server.url}/train2017.zip"] == hashlib.sha256(whole).hexdigest()


def test_ctrl_c_does_not_wait_for_transfers(server, tmp_path):
    """Threads that read from a slow server must not keep the process alive."""
    begun, release = threading.Barrier(3, timeout=60), threading.Event()

    def stall(handler, body):
        answer(handler, body, send=10)
        begun.wait()
        release.wait(60)

    server.script = {"/train.json.zip": [stall], "/train2017.zip": [stall]}
    places = str(tmp_path / "raw"), str(tmp_path / "train.source.json")
    code = f"from coordexp.datasets.download import provide; provide('lvis', {lvis(server)!r}, 'train', *{places!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        begun.wait()
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=10)[1]
    finally:
        process.kill()
        release.set()


def test_two_processes_do_not_fetch_the_same_file_twice(server, tmp_path):
    entry = lvis(server)
    results = []

    def slow(handler, body):
        threading.Event().wait(0.3)
        answer(handler, body)

    server.script["/train2017.zip"] = [slow]
    threads = [threading.Thread(target=lambda s=s: results.append(run(entry, tmp_path, s))) for s in ("train", "val")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert paths_of(server).count("/train2017.zip") == 1


def test_files_of_a_split_are_fetched_at_the_same_time(server, tmp_path):
    """Each answer waits for the other two: one download after another would never end."""
    together = threading.Barrier(3, timeout=10)

    def wait(handler, body):
        together.wait()
        answer(handler, body)

    for path in ("/val.json.zip", "/train2017.zip", "/val2017.zip"):
        server.script[path] = [wait]
    run(lvis(server), tmp_path, "val")
    assert not together.broken
    assert len(server.requests) == 3


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
    with pytest.raises(ConfigError, match=r"datasets.lvis.format.*'voc'"):
        run({**lvis(server), "format": "voc"}, tmp_path)
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


def plain(server, **facts) -> dict:
    """A dataset whose annotations are a plain file on the web, and whose images the user has."""
    annotations, image_dirs = {"train": "plain.json"}, {"train": ["images"]}
    downloads = {"plain.json": {"url": f"{server.url}/plain.json", **facts}}
    return {"format": "coco", "annotations": annotations, "image_dirs": image_dirs, "downloads": downloads}


def provide_plain(server, folder, **facts):
    (folder / "images").mkdir(exist_ok=True)
    return provide("own", plain(server, **facts), "train", folder, folder / "train.source.json", policy=QUICK)


@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"size": 7}], ids=["sha256", "size"])
def test_facts_given_after_a_download_are_checked(server, tmp_path, facts):
    provide_plain(server, tmp_path)
    with pytest.raises(DownloadError, match="not the expected file"):
        provide_plain(server, tmp_path, **facts)


def test_right_facts_given_after_a_download_are_accepted(server, tmp_path):
    provide_plain(server, tmp_path)
    path = tmp_path / "plain.json"
    provide_plain(server, tmp_path, sha256=sha256_file(path).upper(), size=path.stat().st_size)


def test_a_file_that_was_changed_beside_its_lock_is_refused(server, tmp_path):
    provide_plain(server, tmp_path)
    path = tmp_path / "plain.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DownloadError, match=r"plain.json.*not the expected file"):
        provide_plain(server, tmp_path)


def test_a_member_of_an_archive_that_was_changed_is_refused(server, tmp_path):
    provide("lvis", lvis(server), "train", tmp_path, tmp_path / "train.source.json", policy=QUICK)
    path = next(tmp_path.rglob("lvis_v1_train.json"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DownloadError, match="changed since it was downloaded"):
        provide("lvis", lvis(server), "train", tmp_path, tmp_path / "train.source.json", policy=QUICK)


def test_a_finished_but_wrong_download_is_repeated(server, tmp_path):
    (tmp_path / ".plain.json.fetched").write_bytes(b"{}")
    right = hashlib.sha256(server.content["/plain.json"]).hexdigest()
    provide_plain(server, tmp_path, sha256=right)
    assert sha256_file(tmp_path / "plain.json") == right


def test_no_file_of_a_download_holds_a_secret_of_its_url(server, tmp_path):
    server.content["/plain.json?token=secret"] = server.content["/plain.json"]
    (tmp_path / "images").mkdir()
    entry = plain(server)
    entry["downloads"]["plain.json"]["url"] += "?token=secret"
    provide("own", entry, "train", tmp_path, tmp_path / "train.source.json", policy=QUICK)
    assert (tmp_path / "downloads.lock.json").exists()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


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
