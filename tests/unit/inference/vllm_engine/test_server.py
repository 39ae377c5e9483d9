"""`coordexp serve` with an OpenAI client, by the example of docs/serving.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from inference_helpers import SIZES, read
from server_process import started

from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle
from coordexp.inference.import_responses import import_responses
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict

for needed in ("vllm", "openai"):
    pytest.importorskip(needed, reason="vllm is not installed: make test-vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[4]
START_SECONDS = 900


@pytest.fixture(scope="module")
def server(taught, tmp_path_factory):
    """Base address of `coordexp serve`."""
    command = [sys.executable, "-m", "coordexp.cli", "serve", str(taught), "--vllm=--enforce-eager"]
    env = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    with started(command, env, tmp_path_factory.mktemp("server") / "log", START_SECONDS) as address:
        yield address


def run_example(**given: object) -> None:
    """Run the Python of the page's example for `coordexp serve` with the constants `given`."""
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "OpenAI" in block)
    code = code.replace("client =", "globals().update(GIVEN)\nclient =", 1)
    exec(code, {"GIVEN": given})


def test_boxes_and_scores_of_served_answers_equal_those_of_predict(server, taught, records, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "served.jsonl"
    run_example(SERVER=server, MODEL=str(taught), RECORDS=records, ANSWERS=served)
    counts = import_responses(served, records, tmp_path / "a.jsonl", model_dir=taught)
    predict(taught, records, tmp_path / "b.jsonl", PredictOptions(max_new_tokens=300), PromptStyle())
    assert counts == {"images": len(SIZES), "detections": counts["detections"]} and counts["detections"] >= 5
    for a, b, size in zip(read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl"), SIZES, strict=True):
        if size[0] * size[1] < 4 * 32 * 32:
            continue  # below the minimum area of the checkpoint, the server enlarges it
        assert (a.text, a.finish) == (b.text, b.finish)
        for x, y in zip(a.detections, b.detections, strict=True):
            assert (x.desc, x.bins) == (y.desc, y.bins)
            assert x.norm == pytest.approx(y.norm, abs=1e-6) and x.score == pytest.approx(y.score, abs=1e-4)


def test_any_client_gets_an_answer_that_parses_and_may_restrict_the_labels(server, taught, records, monkeypatch):
    import base64

    from openai import BadRequestError, OpenAI

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = OpenAI(base_url=server, api_key="none")
    image = base64.b64encode((records.parent / "0.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": "What is this?"},
    ]

    def ask(**given: object) -> str:
        messages = [{"role": "user", "content": content}]
        reply = client.chat.completions.create(model=str(taught), messages=messages, temperature=1.0, **given)
        assert reply.choices[0].finish_reason == "stop"
        return reply.choices[0].message.content

    assert not parse_answer(ask(), "token").problems
    restricted = parse_answer(ask(extra_body={"vllm_xargs": {"labels": ["bun (food)"]}}), "token")
    assert not restricted.problems and {obj.desc for obj in restricted.objects} <= {"bun (food)"}
    with pytest.raises(BadRequestError, match="labels: expected a list of names"):
        ask(extra_body={"vllm_xargs": {"labels": [" "]}})
