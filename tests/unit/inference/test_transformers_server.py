"""The example of docs/serving.md, verbatim, against a real `transformers serve`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from inference_helpers import SIZES, read
from server_process import started

from coordexp.answers.render import PromptStyle
from coordexp.inference.import_responses import import_responses
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict

for needed in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="`transformers serve` needs it")
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "serving.md"
START_SECONDS = 180


@pytest.fixture(scope="module")
def server(taught, tmp_path_factory):
    """Base address of a server of the taught predictor."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(taught)]
    command += ["--host", "127.0.0.1", "--device", "cpu"]
    env = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with started(command, env, tmp_path_factory.mktemp("server") / "log", START_SECONDS) as address:
        yield address


def run_example(max_tokens: int = 4096, **given: object) -> None:
    """Run the Python of the page's first block with the constants `given`."""
    code = re.search(r"```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL).group(1)
    assert all(re.search(rf"\b{name}\b[^\n]* = ", code) for name in given)
    code = code.replace("client =", "globals().update(GIVEN)\nclient =", 1)
    exec(code.replace("max_tokens=4096", f"max_tokens={max_tokens}"), {"GIVEN": given})


@pytest.fixture
def given(server, taught, records, tmp_path, monkeypatch):
    """The example's constants for this server; responses are written to `ANSWERS`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers = tmp_path / "served.jsonl"
    return {"SERVER": server, "MODEL": str(taught), "RECORDS": records, "ANSWERS": answers, "EXTRA": {}}


def test_the_example_equals_predict(given, taught, records, tmp_path):
    run_example(**given)
    counts = import_responses(given["ANSWERS"], records, tmp_path / "served_p.jsonl")
    options = PredictOptions(decode="argmax", max_new_tokens=300)
    predict(taught, records, tmp_path / "p.jsonl", options, PromptStyle())
    rows = zip(SIZES, read(tmp_path / "served_p.jsonl"), read(tmp_path / "p.jsonl"), strict=True)
    # the server enlarges images below the checkpoint's minimum area, as the page states
    untouched = [(a, b) for (width, height), a, b in rows if width * height >= 4 * 32 * 32]
    assert counts == {"images": len(SIZES), "detections": counts["detections"]} and len(untouched) == 4
    for a, b in untouched:
        assert [(d.desc, d.bins) for d in a.detections] == [(d.desc, d.bins) for d in b.detections]
        assert a.finish == "stop" and all(d.score == 1.0 for d in a.detections)


def test_objects_of_a_truncated_answer_are_kept(given, records, tmp_path):
    run_example(max_tokens=40, **given)
    reasons = {json.loads(line)["choices"][0]["finish_reason"] for line in given["ANSWERS"].read_text().splitlines()}
    counts = import_responses(given["ANSWERS"], records, tmp_path / "p.jsonl")
    assert reasons == {"stop", "length"} and counts["cut_off"] > 0
    cut = [row for row in read(tmp_path / "p.jsonl") if row.finish == "length"]
    assert cut and any(row.detections for row in cut)


def test_the_server_rejects_the_option_named_on_the_page(given):
    from openai import UnprocessableEntityError

    del given["EXTRA"]
    with pytest.raises(UnprocessableEntityError):
        run_example(**given)
