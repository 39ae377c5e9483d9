"""The job file that training processes read."""

import msgspec
import pytest

from coordexp.runtime.io import read_json, write_json
from coordexp.training.job import Job


def test_a_job_survives_writing_and_reading(tmp_path):
    job = Job({"learning_rate": 1e-4, "model": "/models/x"}, {"emit_norm": "norm1000"}, "/out/checkpoints")
    write_json(tmp_path / "job.json", job)
    assert msgspec.convert(read_json(tmp_path / "job.json"), Job) == job


def test_an_unknown_field_is_refused():
    with pytest.raises(msgspec.ValidationError, match="extra"):
        msgspec.convert({"arguments": {}, "custom": {}, "checkpoints": "", "extra": 1}, Job)
