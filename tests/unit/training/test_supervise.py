"""Ctrl-C and SIGTERM reach the training processes as SIGTERM; the console shows their progress."""

import os
import signal
import sys
import threading
import time

import pytest

from coordexp.runtime.notices import CONSOLE_FD
from coordexp.training import supervise

# Writes the signals that it receives, and ends after SIGTERM unless told otherwise.
CHILD = """
import os, signal, sys, time
out, stays = open(sys.argv[1], "a"), sys.argv[2] == "stays"
def note(number, _):
    print(signal.Signals(number).name, file=out, flush=True)
    if not stays:
        sys.exit(143)
signal.signal(signal.SIGTERM, note)
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, note)
print("ready", file=out, flush=True)
time.sleep(60)
time.sleep(60)
"""


def interrupted(tmp_path, child, *signals):
    """Outcome of a child whose parent receives `signals`, and what the child wrote."""
    file = tmp_path / "signals"

    def send():
        for number in signals:
            lines = len(file.read_text().split()) if file.exists() else 0
            while not file.exists() or len(file.read_text().split()) < max(lines, 1):
                time.sleep(0.01)
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    outcome = supervise.supervise([sys.executable, "-c", CHILD, str(file), child], os.environ, tmp_path)
    thread.join()
    return outcome, file.read_text().split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_processes_as_sigterm(tmp_path, number):
    before = signal.getsignal(number)
    outcome, seen = interrupted(tmp_path, "ends", number)
    assert seen == ["ready", "SIGTERM"] and outcome == (143, True)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_kills(tmp_path):
    outcome, _ = interrupted(tmp_path, "stays", signal.SIGINT, signal.SIGINT)
    assert outcome == (-signal.SIGKILL, True)


def test_the_console_shows_a_line_per_logged_step(tmp_path, monkeypatch, capfd):
    rows = [
        {"loss": 60.0621, "global_step/max_steps": "1/1400", "remaining_time": "3m 1s"},
        {"eval_loss": 2.0, "global_step/max_steps": "1300/1400"},
        {"eval_AP": 0.25, "eval_train_AP": 0.5, "eval_AP_other_image": 0.2469, "eval_answer_agreement": 0.9}
        | {"global_step/max_steps": "1300/1400"},
        {"loss": 1.25, "bin_error_median": 3.21, "images_per_second": 41.5}
        | {"global_step/max_steps": "1300/1400", "remaining_time": "12s"},
    ]
    log = tmp_path / supervise.LOG
    log.write_text('{"loss": 2.0, "of": "an earlier run, before it was resumed"}\n')
    console, shown = os.pipe()
    monkeypatch.setenv(CONSOLE_FD, str(shown))
    monkeypatch.setattr(supervise, "SECONDS_BETWEEN_READS", 0.05)
    code = f"""if True:
        import json, os, time
        assert {CONSOLE_FD!r} not in os.environ
        for row in {rows!r}:
            time.sleep(0.1)
            open({str(log)!r}, "a").write(json.dumps(row) + chr(10))
    """
    assert supervise.supervise([sys.executable, "-c", code], os.environ, tmp_path).code == 0
    expected = [
        "train: step 1 of 1,400, loss 60.06, 3m 1s left",
        "train: evaluation at step 1,300 of 1,400, AP 0.250, on training images 0.500, with another image 0.247, "
        "warning: the model barely uses the image: 90% of the boxes are the same with another image",
        "train: step 1,300 of 1,400, loss 1.25, median error 3.21 bins, 41.5 images/s, 12s left",
    ]
    assert os.read(console, 10000).decode().splitlines() == capfd.readouterr().err.splitlines() == expected


def test_only_complete_lines_of_a_log_are_read(tmp_path):
    log = tmp_path / "log.jsonl"
    reader = supervise.LogReader(log)
    assert reader.new_rows() == []
    log.write_text('{"a": 1}\n{"b"')
    assert reader.new_rows() == [{"a": 1}] and reader.new_rows() == []
    log.write_text('{"a": 1}\n{"b": 2}\n')
    assert reader.new_rows() == [{"b": 2}]


def test_a_run_without_a_logged_step_says_so_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervise, "SECONDS_BETWEEN_READS", 0.02)
    monkeypatch.setattr(supervise, "SECONDS_UNTIL_NOTICE", 0.1)
    supervise.supervise([sys.executable, "-c", "import time; time.sleep(0.4)"], os.environ, tmp_path)
    assert capfd.readouterr().err == "train: no step logged yet\n"
