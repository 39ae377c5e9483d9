"""Progress lines: how far, how fast, how long still."""

import io

import pytest

from coordexp.runtime import progress
from coordexp.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left(clock):
    out = io.StringIO()
    bar = Progress("convert", 4000, "images", stream=out)
    clock[0] += 1
    bar.add(100)
    assert out.getvalue() == ""  # not a line for every image
    clock[0] += 9
    bar.add(900)
    assert out.getvalue() == "convert: 1,000 of 4,000 images (25%), 100.0 images/s, 0:00:30 left\n"
    clock[0] += 30
    bar.add(3000)
    assert out.getvalue().splitlines()[1] == "convert: 4,000 of 4,000 images (100%), 100.0 images/s"


def test_work_of_an_earlier_run_does_not_count_as_speed(clock):
    out = io.StringIO()
    bar = Progress("download a.zip", 10e6, "MB", scale=1e6, stream=out)
    bar.resume_at(5e6)
    clock[0] += 10
    bar.add(1e6)
    assert out.getvalue() == "download a.zip: 6 of 10 MB (60%), 0.1 MB/s, 0:00:40 left\n"


def test_an_unknown_total_has_no_time_left(clock):
    out = io.StringIO()
    bar = Progress("download a.zip", None, "MB", scale=1e6, stream=out)
    clock[0] += 10
    bar.add(20e6)
    bar.note("the server says 503")
    assert out.getvalue() == "download a.zip: 20 MB, 2.0 MB/s\ndownload a.zip: the server says 503\n"
