"""Files written in pieces by several threads, with and without direct I/O, and errors of the disk."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coordexp.modeling import parallel_writer as output
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.parallel_writer import PAGE, Output, aligned_buffer

IO_MODES = ("direct", "cached", "refused", "short")


@pytest.fixture
def io_mode(request, monkeypatch):
    """Simulates one behaviour of the file system; counts the bytes that bypassed the page cache."""
    counted = {"direct": 0}
    real = os.pwrite

    def pwrite(descriptor, view, position):
        if not position % PAGE and len(view) and not len(view) % PAGE and output._address(view) % PAGE == 0:
            if request.param == "refused" and descriptor in direct:
                raise OSError(errno.EINVAL, "alignment")
            if request.param == "short" and descriptor in direct and len(view) > PAGE:
                with open(paths[-1], "r+b", buffering=0) as file:
                    return real(file.fileno(), view[: PAGE + PAGE // 2], position)
            counted["direct"] += (descriptor in direct) * len(view)
        return real(descriptor, view, position)

    direct, paths, opened = set(), [], output._open_direct

    def open_direct(path):
        paths.append(path)
        descriptor = None if request.param == "cached" else opened(path)
        direct.add(descriptor)
        return descriptor

    monkeypatch.setattr(output, "_open_direct", open_direct)
    monkeypatch.setattr(os, "pwrite", pwrite)
    return request.param, counted


@pytest.mark.parametrize("io_mode", IO_MODES, indirect=True)
def test_pieces_of_any_size_and_position_give_the_file(tmp_path, io_mode):
    name, counted = io_mode
    rng = np.random.default_rng(3)
    sizes = [1, PAGE - 1, PAGE, PAGE + 1, 3, 5 * PAGE, 7 * PAGE + 11, 2, 0, *rng.integers(1, 20 * PAGE, 60)]
    pieces = [rng.integers(0, 256, int(size), np.uint8).tobytes() for size in sizes]
    out = Output(tmp_path / "file", sum(map(len, pieces)))

    def write(position, piece, prepared):
        view = aligned_buffer("test", len(piece), position) if prepared else bytearray(len(piece))
        view[:] = piece
        out.write(position, view)

    with ThreadPoolExecutor(4) as pool:
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        for future in [pool.submit(write, at, piece, at % 3) for at, piece in zip(starts, pieces, strict=False)]:
            future.result()
    out.close()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    if name == "direct" and output._open_direct(tmp_path / "file") is not None:
        assert counted["direct"] > 100 * PAGE


def test_buffers_are_aligned_like_their_file_position():
    for position in (0, 1, 8, PAGE - 1, PAGE, 10 * PAGE + 77):
        assert output._address(aligned_buffer("test", 3 * PAGE, position)) % PAGE == position % PAGE
    assert len(aligned_buffer("test", 5)) == 5


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"), shards.workers() as pool:
        shards.write_file(tmp_path / "file", [], {"a": "b"}, pool)


def test_a_failed_flush_is_an_error(monkeypatch, tmp_path):
    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"), shards.workers() as pool:
        shards.write_file(tmp_path / "file", [], {"a": "b"}, pool)
