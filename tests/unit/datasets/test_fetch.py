"""Files from the web: hashes, the lock, archives, interruptions, and several processes at once."""

import hashlib
import json
import signal
import subprocess
import sys
import threading

import pytest
from dataset_cases import answer, zipped
from download_cases import QUICK, jpeg, lvis, paths_of, run, serving_lvis

from coordexp.datasets.download import provide
from coordexp.datasets.fetch import DownloadEntry, download_of, fetch_files
from coordexp.runtime.errors import ConfigError, DownloadError
from coordexp.runtime.io import sha256_file


@pytest.fixture
def server():
    with serving_lvis() as running:
        yield running


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
from coordexp.datasets.fetch import DownloadEntry, download_of, fetch_files

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


def fetch_plain(server, folder, query="", **facts):
    """Fetch a plain file."""
    entries = {"plain.json": DownloadEntry(f"{server.url}/plain.json{query}", **facts)}
    fetch_files("own", entries, ["plain.json"], ["plain.json"], folder, QUICK)


@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"size": 7}], ids=["sha256", "size"])
def test_facts_given_after_a_download_are_checked(server, tmp_path, facts):
    fetch_plain(server, tmp_path)
    with pytest.raises(DownloadError, match="not the expected file"):
        fetch_plain(server, tmp_path, **facts)


def test_right_facts_given_after_a_download_are_accepted(server, tmp_path):
    fetch_plain(server, tmp_path)
    path = tmp_path / "plain.json"
    fetch_plain(server, tmp_path, sha256=sha256_file(path).upper(), size=path.stat().st_size)


def test_a_file_that_was_changed_beside_its_lock_is_refused(server, tmp_path):
    fetch_plain(server, tmp_path)
    path = tmp_path / "plain.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DownloadError, match=r"plain.json.*not the expected file"):
        fetch_plain(server, tmp_path)


def test_a_member_of_an_archive_that_was_changed_is_refused(server, tmp_path):
    provide("lvis", lvis(server), "train", tmp_path, tmp_path / "train.source.json", policy=QUICK)
    path = next(tmp_path.rglob("lvis_v1_train.json"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DownloadError, match="changed since it was downloaded"):
        provide("lvis", lvis(server), "train", tmp_path, tmp_path / "train.source.json", policy=QUICK)


def test_a_finished_but_wrong_download_is_repeated(server, tmp_path):
    (tmp_path / ".plain.json.fetched").write_bytes(b"{}")
    right = hashlib.sha256(server.content["/plain.json"]).hexdigest()
    fetch_plain(server, tmp_path, sha256=right)
    assert sha256_file(tmp_path / "plain.json") == right


def test_no_file_of_a_download_holds_a_secret_of_its_url(server, tmp_path):
    server.content["/plain.json?token=secret"] = server.content["/plain.json"]
    fetch_plain(server, tmp_path, "?token=secret")
    assert (tmp_path / "downloads.lock.json").exists()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("path", "key"),
    [("a/b/1.jpg", "a/b"), ("a/c.jpg", "a"), ("a/b", "a/b"), ("ab/1.jpg", "."), ("x.json", "x.json")],
)
def test_the_innermost_download_provides_a_path(path, key):
    assert download_of(path, dict.fromkeys(["a", "a/b", ".", "x.json"])) == key


def test_a_path_without_download_is_an_error_unless_it_exists(tmp_path):
    assert download_of("b.json", {"a": None}) is None
    with pytest.raises(ConfigError, match=r"datasets.own.downloads: no download provides this path; found 'b.json'"):
        fetch_files("own", {}, ["b.json"], ["b.json"], tmp_path, QUICK)
    (tmp_path / "b.json").touch()
    fetch_files("own", {}, ["b.json"], ["b.json"], tmp_path, QUICK)


def test_every_failed_download_is_named(server, tmp_path):
    entries = {name: DownloadEntry(f"{server.url}/{name}") for name in ("one.json", "two.json")}
    with pytest.raises(DownloadError, match=r"(?s)one\.json.*two\.json.*without network access: put the data at"):
        fetch_files("own", entries, list(entries), list(entries), tmp_path, QUICK)


def test_a_file_that_exists_is_not_downloaded_again(server, tmp_path):
    fetch_plain(server, tmp_path)
    fetch_plain(server, tmp_path)
    assert paths_of(server).count("/plain.json") == 1
