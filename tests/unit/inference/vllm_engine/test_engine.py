"""The engine of vLLM against our decoder: the same predictions, and no finished one lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from inference_helpers import images, read, taught_checkpoint
from vocabularies import qwen3_tokenizer

from coordexp.answers.parse import parse_answer
from coordexp.answers.render import PromptStyle
from coordexp.inference.detector import Detector
from coordexp.inference.gather import gather
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict
from coordexp.inference.predictor import Request, local_processor
from coordexp.inference.prompts import Prompt
from coordexp.modeling import tiny, vocab
from coordexp.modeling.families import family_of
from coordexp.records import Metadata, Prediction, Record
from coordexp.runtime.errors import DataError
from coordexp.runtime.io import write_jsonl

pytest.importorskip("vllm", reason="vllm is not installed: make test-vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

KINDS = ("bbox_2d", "poly")
# Every engine runs in a process of its own, as in the workflow.
PREDICT = """
import json, sys, msgspec
from pathlib import Path
from coordexp.answers.render import PromptStyle
from coordexp.inference.options import PredictOptions
from coordexp.inference.predict import predict

given = json.loads(sys.argv[1])
counts = predict(
    given["model"], given["records"], Path(given["out"]), msgspec.convert(given["options"], PredictOptions),
    msgspec.convert(given["style"], PromptStyle), categories=given["categories"], **given["part"],
)
print(json.dumps(counts))
"""
CATEGORIES = ["cat", "black cat", "traffic light"]


def command(
    model: Path, records: Path, out: Path, options: PredictOptions, style: PromptStyle, shard: int = 0, shards: int = 1
) -> list[str]:
    given = {"model": str(model), "records": str(records), "out": str(out), "categories": CATEGORIES}
    given |= {"part": {"shard": shard, "shards": shards}}
    given |= {"options": msgspec.to_builtins(options), "style": msgspec.to_builtins(style)}
    return [sys.executable, "-c", PREDICT, json.dumps(given)]


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[4] / "src")
    return {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def predicted(model: Path, records: Path, folder: Path, options: PredictOptions, style: PromptStyle) -> dict:
    """Predictions of both engines, by the name of the engine."""
    found = {}
    for engine in ("vllm", "transformers"):
        out, chosen = folder / f"{engine}.jsonl", msgspec.structs.replace(options, engine=engine)
        if engine == "vllm":
            subprocess.run(command(model, records, out, chosen, style), check=True, env=environment())
        else:
            predict(model, records, out, chosen, style, categories=CATEGORIES)
        found[engine] = read(out)
    return found


def assert_equal(found: dict[str, list[Prediction]]) -> None:
    """The same tokens; coordinates within 1e-3 bins and scores within 1e-4."""
    for a, b in zip(found["vllm"], found["transformers"], strict=True):
        assert a.token_ids == b.token_ids
        assert (a.text, a.finish, a.problems, a.image_id) == (b.text, b.finish, b.problems, b.image_id)
        assert a.token_logprobs == pytest.approx(b.token_logprobs, abs=2e-4)  # they are rounded to 1e-4
        for x, y in zip(a.detections, b.detections, strict=True):
            assert (x.desc, x.bins) == (y.desc, y.bins)
            assert x.norm == pytest.approx(y.norm, abs=1e-6)  # a bin is 1 / 999
            assert x.score == pytest.approx(y.score, abs=1e-4)
            assert x.spread == pytest.approx(y.spread, abs=1e-5) and x.poly == pytest.approx(y.poly, abs=1e-6)
            assert x.score_parts == pytest.approx(y.score_parts, abs=1e-4)


@pytest.mark.parametrize(
    ("order", "protocol"), [("desc_first", "open"), ("geometry_first", "all_categories")], ids=["boxes", "labels"]
)
def test_predictions_equal_those_of_the_decoder_with_the_compact_vocabulary(order, protocol, records, tmp_path):
    style = PromptStyle(object_field_order=order)
    restricted = protocol == "all_categories"
    options = PredictOptions(max_new_tokens=300, geometry=KINDS, batch_size=3, protocol=protocol, chunk=2)
    options = msgspec.structs.replace(options, restrict_labels=restricted)
    found = predicted(taught_checkpoint(style, poly=True, steps=50), records, tmp_path, options, style)
    assert_equal(found)
    detections = [detection for prediction in found["vllm"] for detection in prediction.detections]
    assert len(detections) >= 5 and any(detection.poly for detection in detections)
    if restricted:
        assert {detection.desc for detection in detections} <= set(CATEGORIES)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A tiny checkpoint with the published vocabulary and random weights, which rambles: 152,670 tokens."""
    folder = tmp_path_factory.mktemp("published")
    tiny.build(folder / "base", 7, tokenizer=qwen3_tokenizer())
    vocab.expand(folder / "base", folder / "expanded")
    return folder / "expanded"


def test_answers_of_a_random_model_with_the_published_vocabulary_equal_those_of_the_decoder(
    published, records, tmp_path
):
    limits = {"max_new_tokens": 160, "max_desc_tokens": 6, "max_repeats": 2, "repeat_iou": 0.5}
    found = predicted(published, records, tmp_path, PredictOptions(batch_size=2, **limits), PromptStyle())
    assert_equal(found)
    for prediction in found["vllm"]:
        parsed = parse_answer(prediction.text, "token")
        assert set(parsed.problems) <= {"cut_off"} and len(parsed.objects) == len(prediction.detections)
    assert sum(prediction.problems.get("description_closed", 0) for prediction in found["vllm"])


DETECT = """
import json, sys
from coordexp import Detector
from coordexp.inference.options import PredictOptions

model, *files = sys.argv[1:]
detector = Detector(model, engine="vllm", options=PredictOptions(max_new_tokens=120, samples=3, batch_size=4))
found = detector.detect(files, categories=["cat", "traffic light"])
print(json.dumps([[d.boxes.tolist(), d.labels, d.scores.tolist()] for d in found]))
"""


def test_a_detector_with_sampled_answers_finds_the_same_objects(tmp_path):
    model, options = taught_checkpoint(PromptStyle()), PredictOptions(max_new_tokens=120, samples=3)
    files = [str(tmp_path / f"{n}.png") for n in range(3)]
    for image, file in zip(images(), files, strict=False):
        image.save(file)
    started = [sys.executable, "-c", DETECT, str(model), *files]
    done = subprocess.run(started, check=True, env=environment(), capture_output=True, text=True)
    expected = Detector(model, options=options).detect(files, categories=["cat", "traffic light"])
    for (boxes, labels, scores), found in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert labels == list(found.labels) and len(labels) > 0
        assert np.asarray(boxes) == pytest.approx(found.boxes, abs=1e-3)  # pixels
        assert scores == pytest.approx(list(found.scores), abs=1e-4)


def test_a_prompt_that_vllm_rejects_is_an_error_with_its_remedy(tiny_model):
    from types import SimpleNamespace

    from vllm.exceptions import VLLMValidationError

    from coordexp.inference.vllm_engine.predictor import VllmPredictor
    from coordexp.inference.vllm_engine.processor import STEPPERS

    def add_request(*given: object) -> None:
        raise VLLMValidationError("longer than the maximum model length")

    engine = SimpleNamespace(add_request=add_request)
    config, options = json.loads((tiny_model / "config.json").read_text()), PredictOptions()
    parts = (local_processor(tiny_model), family_of(tiny_model), config, options, PromptStyle())
    request = Request(0, images()[0], Prompt())
    with pytest.raises(DataError, match=r"maximum model length(.|\n)*predict\.chunk"):
        list(VllmPredictor(engine, *parts).stream([request], 1))
    assert not STEPPERS


def test_a_killed_engine_of_a_shard_loses_no_finished_prediction(tmp_path):
    """Two shards, one of them killed and resumed, are gathered to the file that a single shard writes."""
    rows, examples = [], images()
    for n in range(24):
        examples[n % 5].save(tmp_path / f"{n}.png")
        rows.append(Record([f"{n}.png"], *examples[n % 5].size, "pixel", [], Metadata(n, 640, 480)))
    records = tmp_path / "val.jsonl"
    write_jsonl(records, rows)
    model, style = taught_checkpoint(PromptStyle()), PromptStyle()
    options = PredictOptions(max_new_tokens=300, batch_size=1, engine="vllm", shards=2)
    shards = [tmp_path / "1-of-2.jsonl", tmp_path / "2-of-2.jsonl"]
    first, second = (command(model, records, out, options, style, n, 2) for n, out in enumerate(shards))
    with subprocess.Popen(second, env=environment(), stdout=subprocess.DEVNULL) as other:
        kept = killed_after(4, first, shards[0])
        assert 4 <= kept < len(rows) / 2
        done = subprocess.run(first, check=True, env=environment(), capture_output=True, text=True)
        assert json.loads(done.stdout.splitlines()[-1])["images"] == len(rows) / 2 - kept
        assert other.wait() == 0
    assert gather(shards, tmp_path / "gathered.jsonl", records=records) == len(rows)
    subprocess.run(command(model, records, tmp_path / "whole.jsonl", options, style), check=True, env=environment())
    assert (tmp_path / "gathered.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def killed_after(count: int, started: list[str], out: Path) -> int:
    """Kill a prediction when more than `count` rows are finished; the number of rows that it leaves."""
    unfinished = out.with_name(f".{out.name}.rows")
    with subprocess.Popen(started, env=environment(), stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 900
        while time.monotonic() < end and process.poll() is None:
            if unfinished.is_file() and unfinished.read_bytes().count(b"\n") > count:
                break
            time.sleep(0.02)
        assert process.poll() is None, "finished before it was killed"
        process.send_signal(signal.SIGKILL)
    return unfinished.read_bytes().count(b"\n") - 1
