"""Progress reports: how far, how fast, how long still."""

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


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def test_rate_and_time_left(clock):
    out = io.StringIO()
    bar = Progress("convert", 4000, "images", stream=out)
    clock[0] += 1
    bar.add(100)
    assert out.getvalue() == ""  # at most one line every few seconds
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
    bar.note("the server responded 503")
    assert out.getvalue() == "download a.zip: 20 MB, 2.0 MB/s\ndownload a.zip: the server responded 503\n"


def test_further_counts_are_reported_and_returned_as_rates(clock):
    out = io.StringIO()
    bar = Progress("predict", 20, "images", counted=("objects",), stream=out)
    bar.resume_at(5)
    clock[0] += 10
    bar.add(2, objects=9)
    assert out.getvalue() == "predict: 7 of 20 images (35%), 0.2 images/s, 0.9 objects/s, 0:01:05 left\n"
    assert bar.finish() == {
        "images": 2,
        "objects": 9,
        "seconds": 10,
        "images_per_second": 0.2,
        "objects_per_second": 0.9,
    }


def test_a_log_file_gets_lines_and_a_terminal_a_bar(clock):
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        bar = Progress("convert", 10, "images", stream=stream)
        clock[0] += 6
        bar.add(5)
        bar.finish()
    assert "\r" not in log.getvalue() and log.getvalue().count("\n") == 2
    assert "\r" in terminal.getvalue() and "5/10" in terminal.getvalue()
