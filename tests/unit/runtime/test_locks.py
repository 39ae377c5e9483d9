"""Writers that are killed: their locks and parts go with them, and with the last of their children."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from coordexp.runtime import io
from coordexp.runtime.locks import disk_is_full, sole_writer

HOLD = """
import sys, time, subprocess
from pathlib import Path
from coordexp.runtime.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", sys.argv[2]], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""
WRITE = """
import sys, time
from coordexp.runtime.io import atomic_dir, atomic_open
with atomic_open(sys.argv[1]) as handle, atomic_dir(sys.argv[2]) as folder:
    handle.write(b"half"), handle.flush(), (folder / "half").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""
# NFS stands an exclusive lock in by one of a range of bytes, which needs a descriptor that may write.
NFS = """
import errno, fcntl, os
def flock(descriptor, operation, real=fcntl.flock):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    real(descriptor, operation)
fcntl.flock = flock
"""
PARENT = """
import subprocess, sys, time
code = "from coordexp.runtime.locks import *; import time; end_with_parent(); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
time.sleep(60)
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lock_is_held_until_the_last_child_of_a_killed_holder_ends(tmp_path, capfd):
    holder = start(HOLD, tmp_path / "out", 3)
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with sole_writer(tmp_path / "out"):
        waited = time.monotonic() - began
    assert waited > 1
    assert f"process {holder.pid} on" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_waits_for_a_lock_gets_one_that_is_still_there(tmp_path):
    """The holder removes its file as it goes: two that waited must not both go on."""
    counter = tmp_path / "count"
    counter.write_text("0")
    code = """
import sys, time
from pathlib import Path
from coordexp.runtime.locks import sole_writer
count = Path(sys.argv[1])
with sole_writer(count.with_name("out")):
    now = int(count.read_text()); time.sleep(0.2); count.write_text(str(now + 1))
"""
    processes = [start(code, counter) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "4"


@pytest.mark.parametrize("nfs", ["", NFS], ids=["local", "nfs"])
def test_parts_of_killed_writers_are_removed_by_the_next_and_parts_at_work_are_not(tmp_path, monkeypatch, nfs):
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # undone at the end
    exec(nfs)
    file, folder = tmp_path / "file", tmp_path / "folder"
    writers = [start(nfs + WRITE, file, folder) for _ in range(2)]
    assert [writer.stdout.readline() for writer in writers] == ["begun\n"] * 2
    assert len(list(tmp_path.glob(".*.part"))) == 4
    writers[0].kill()
    writers[0].wait()
    io.write_text(file, "whole")
    with io.atomic_dir(folder) as scratch:
        (scratch / "whole").touch()
    assert len(list(tmp_path.glob(".*.part"))) == 2
    writers[1].send_signal(signal.SIGINT)
    writers[1].wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert file.read_text() == "whole" and [path.name for path in folder.iterdir()] == ["whole"]


def test_what_a_writer_leaves_that_is_killed_before_or_after_its_folder_is_there_goes_too(tmp_path):
    """A lock without a folder, and a folder without a lock as earlier versions left them; nothing of other outputs."""
    (tmp_path / ".folder.one.part.lock").touch()
    (tmp_path / ".folder.two.part").mkdir()
    (tmp_path / ".folder.two.part" / "half").touch()
    others = [".folder.lock", ".folder2.one.part.lock", "folder.three.part.lock"]
    for name in others:
        (tmp_path / name).touch()
    with io.atomic_dir(tmp_path / "folder") as scratch:
        (scratch / "whole").touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [*others, scratch.name, f"{scratch.name}.lock"]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "folder"])
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]


def test_a_part_that_a_sweep_removed_before_it_was_held_is_made_again(tmp_path, monkeypatch):
    real, swept = fcntl.flock, []

    def late(descriptor, operation):
        if not swept:
            [part] = tmp_path.iterdir()
            swept.append(part.unlink())
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    io.write_text(tmp_path / "file", "whole")
    assert swept and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_child_ends_with_its_killed_parent(tmp_path):
    parent = start(PARENT)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    parent.kill()
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_full_disk_is_known_by_number_by_text_and_by_what_is_free(tmp_path, monkeypatch):
    assert disk_is_full(OSError(28, "No space left on device"), tmp_path)
    assert disk_is_full(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert disk_is_full(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)
    assert disk_is_full(RuntimeError("Data processing error: Disk quota exceeded (os error 122)"), tmp_path)
    with pytest.raises(RuntimeError) as caught:
        try:
            os.stat(tmp_path / "absent")
        except OSError as error:
            raise RuntimeError("wrapped") from error
    assert not disk_is_full(caught.value, tmp_path)
