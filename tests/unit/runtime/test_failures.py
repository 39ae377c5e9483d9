"""The console shows cause, remedy and log of a failed job, without its traceback."""

import pytest

from coordexp.runtime.failures import cause, explain

WORKER = "error: loss is nan at step 2\n  records: a.jsonl:1\n  -> lower the learning rate\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"warning: x\n{WORKER}error: training failed with exit code 1\n  -> see above\n", WORKER),
        (f"Train: 0%|  | 2/400 [00:00<01:04,  6.13it/s]\rTrain: 1%| | 3/400 [6it/s]{WORKER}", WORKER),
        ("Traceback (most recent call last):\n  File x\nValueError: no\n\n", "error: ValueError: no"),
        ("", "error: ended without a message"),
    ],
)
def test_the_cause_is_the_first_error_or_the_end_of_a_traceback(log, expected):
    assert cause(log) == expected.removeprefix("error: ").rstrip("\n")


def test_a_job_without_its_own_remedy_gets_the_path_of_its_log_and_a_general_one(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("Killed\n")
    text = explain("train", {"run": "a_9", "tiny": ""}, [str(log)])
    assert text.splitlines() == [
        "rule train (run=a_9): Killed",
        "  -> read the log, fix the cause, and run the same command again to continue",
        f"  log: {log}",
    ]


def test_an_error_with_its_own_remedy_gets_no_other(tmp_path):
    (tmp_path / "train.log").write_text(WORKER)
    assert explain("train", {}, [str(tmp_path / "train.log")]).count("->") == 1
    (tmp_path / "train.log").write_text("error: interrupted: saved at step 3; run the same command again to continue\n")
    assert "->" not in explain("train", {}, [str(tmp_path / "train.log")])
