"""The training process: what it registers with ms-swift, and how it reports an error."""

import os
import subprocess
import sys

from coordexp.runtime.io import write_json


def test_only_a_run_with_detection_registers_its_callback():
    code = (
        "from swift.callbacks import callbacks_map\n"
        "from coordexp.training.ms_swift import best_checkpoint, eval_worker, plugin\n"
        "plugin.register()\n"
        "assert best_checkpoint.NAME not in callbacks_map\n"
        "eval_worker.register()\n"
        "scorer = callbacks_map[best_checkpoint.NAME].scorer_type\n"
        "assert scorer.__name__ == 'DetectionScorer', scorer\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_an_error_is_printed_without_a_traceback(tmp_path):
    arguments = {"no_such_argument": 1, "logging_dir": str(tmp_path / "train" / "logs" / "tensorboard")}
    job = {"arguments": arguments, "custom": {}, "checkpoints": str(tmp_path / "checkpoints")}
    write_json(tmp_path / "job.json", job)
    command = [sys.executable, "-m", "coordexp.training.ms_swift.eval_worker", str(tmp_path / "job.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert "error: " in ended.stderr and "no_such_argument" in ended.stderr
    assert "Traceback" not in ended.stderr
