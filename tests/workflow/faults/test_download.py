"""Archives of a dataset over HTTP: what has arrived is not fetched again, whatever ended the transfer."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import threading
import zipfile

import numpy as np
import pytest
from case import Case
from scene import REPOSITORY, Scene, interrupt, stop

ROW = "download over HTTP"
SENT = 2_500_000  # bytes of each archive that have been sent when a fault happens
FOLDERS = ("first", "second")  # of images, an archive each
OUTPUTS = ("resources/web/val.source.json",)
NAMES = (*OUTPUTS, "resources/web/raw")
ENTRY = "workflow_scripts.download"
pytestmark = pytest.mark.soak

spec = importlib.util.spec_from_file_location("dataset_cases", REPOSITORY / "tests/unit/dataset_cases.py")
dataset_cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dataset_cases)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVES = {
    f"/{name}.zip": zipped({f"{name}/{i:04d}.jpg": np.random.default_rng(i).bytes(400_000) for i in range(10)})
    for name in FOLDERS
}
ANNOTATIONS = b'{"images": [], "annotations": [], "categories": []}'


class Web:
    """A server of two archives and a plain file, which can hold the archives back in the middle."""

    def __init__(self, server):
        self.server, self.release = server, threading.Event()
        server.content = {**ARCHIVES, "/val.json": ANNOTATIONS}
        server.etag = dict.fromkeys(server.content, '"one"')
        downloads = {name: {"url": f"{server.url}/{name}.zip"} for name in FOLDERS}
        downloads["val.json"] = {"url": f"{server.url}/val.json"}
        entry = {"annotations": {"val": "val.json"}, "image_dirs": {"val": list(FOLDERS)}}
        self.changes = {"datasets": {"web": {"format": "coco", **entry, "downloads": downloads}}}

    def hold(self):
        """Transfers of the archives stop after `SENT` bytes, those of another try too, until `release` is set."""
        self.release.clear()
        self.server.script = {path: [self._held] * 20 for path in ARCHIVES}

    def _held(self, handler, body):
        if self.release.is_set():
            return cut(None)(handler, body)
        start = start_of(handler.headers.get("Range"))
        cut(max(0, SENT - start))(handler, body)
        self.release.wait(600)
        with contextlib.suppress(OSError):  # its client was killed
            handler.wfile.write(body[max(SENT, start) :])

    def fetched_again(self):
        """Bytes asked for a second time after `SENT` of each archive had been sent; nothing else came twice."""
        assert self.server.ranges_of("/val.json") == [None]
        again = 0
        for path in ARCHIVES:
            first, *rest = map(start_of, self.server.ranges_of(path))
            assert first == 0
            again += SENT - min([SENT, *rest])
        return again


def cut(sent):
    """An answer that ends after `sent` bytes."""
    return lambda handler, body: dataset_cases.answer(handler, body, send=sent, etag='"one"')


def start_of(asked):
    return 0 if asked is None else int(asked.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture(scope="module")
def web():
    with dataset_cases.serving() as server:
        yield Web(server)


@pytest.fixture(scope="module")
def undisturbed(web, tmp_path_factory, repository):
    scene = Scene(tmp_path_factory.mktemp("web"), repository, web.changes)
    code, text = scene.run(*OUTPUTS)
    assert code == 0, text
    facts = [json.loads(line) for line in scene.trace.read_text().splitlines()]
    return scene, scene.spent(scene.trace, facts[-1]["pid"])


@pytest.fixture
def case(web, undisturbed, tmp_path):
    """The dataset about to be downloaded."""
    web.server.requests.clear()
    web.server.script = {}
    yield Case(undisturbed[0], tmp_path / "case", OUTPUTS, NAMES, ENTRY, undisturbed[1])
    web.release.set()
    for process in list(Scene.started):
        stop(process)


def midway(case, web):
    """Snakemake, with its job in the middle of both transfers."""
    web.hold()
    process = case.start()
    raw = case.scene.folder / "resources/web/raw"
    sizes = lambda: [part.stat().st_size for part in raw.glob(".downloads/*.zip.part")]  # noqa: E731
    arrived = lambda: len(sizes()) == 2 and min(sizes()) > SENT - 10_000  # noqa: E731
    case.scene.wait_for(lambda: arrived() and (raw / "val.json").exists(), process)
    return process


def test_job_killed(web, case, cell):
    """Killed in the middle of both transfers, then while it unpacks."""
    process = midway(case, web)
    facts = [json.loads(line) for line in case.traces[-1].read_text().splitlines()]
    os.kill(next(fact["pid"] for fact in facts if fact["entry"] == ENTRY), signal.SIGKILL)
    assert process.wait(120) != 0
    web.release.set()
    case.check_nothing_is_half_written()
    code, _ = case.run(do="kill", entry=ENTRY, path="*/raw/*/.*.part")
    assert code != 0 and '"what": "kill"' in case.traces[-1].read_text()
    case.check_nothing_is_half_written()
    case.check_the_same_command_ends_well()
    cell.update(lost_seconds=case.lost() / 2, fetched_again=web.fetched_again())


def test_snakemake_killed(web, case, cell):
    process = midway(case, web)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    case.take_over(web.release.set)
    cell.update(lost_seconds=case.lost(), fetched_again=web.fetched_again())


def test_ctrl_c(web, case, cell):
    interrupt(midway(case, web))
    web.release.set()
    case.check_nothing_is_half_written()
    case.check_the_same_command_ends_well()
    cell.update(lost_seconds=case.lost(), fetched_again=web.fetched_again())


def test_disk_full(small_disk, web, case, cell):
    process = midway(case, web)
    case.check_a_full_disk(process, small_disk, web.release.set)
    cell.update(lost_seconds=case.lost(), fetched_again=web.fetched_again())


def test_input_cut_off(web, case, cell):
    """A file behind the address is cut off; once it is whole there, its connections break."""
    path = "/first.zip"
    web.server.content[path] = ARCHIVES[path][:SENT]
    try:
        code, text = case.run()
    finally:
        web.server.content[path] = ARCHIVES[path]
    broken = next((case.scene.folder / "resources/web/raw/.downloads").glob("*-first.zip"))
    assert code != 0 and "WorkflowFailed:" in text and broken.name in text.rsplit("WorkflowFailed:", 1)[1], text
    assert not (case.scene.folder / OUTPUTS[0]).exists()
    broken.unlink()  # the documented way
    web.server.requests.clear()
    web.server.script[path] = [cut(SENT), cut(1_000_000)]
    case.check_the_same_command_ends_well()
    assert [(name, start_of(asked)) for name, asked in web.server.requests] == [
        (path, 0),
        (path, SENT),
        (path, SENT + 1_000_000),
    ]
    cell["fetched_again"] = 0


def test_two_at_once(web, case, cell):
    process = midway(case, web)
    log = case.scene.log
    code, text = case.scene.run(*OUTPUTS)
    assert code != 0 and "LockException" in text
    web.release.set()
    assert process.wait(900) == 0, log.read_text()
    case.check_result()
    cell.update(lost_seconds=case.lost(), fetched_again=web.fetched_again())
