"""Random damage to the JSON of checkpoints: every reader accepts it or raises the package's own error."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modeling_helpers as helpers
import pytest
from dataset_cases import draw_image, make_record

from coordexp.answers.render import PromptStyle
from coordexp.doctor import examine
from coordexp.inference.checkpoint_settings import settings_of
from coordexp.inference.options import PredictOptions
from coordexp.inference.predictor import Predictor
from coordexp.modeling import base_model, merge, tiny, vocab
from coordexp.recipe import Custom
from coordexp.runtime.errors import CoordExpError
from coordexp.runtime.io import write_jsonl

LONGEST = 60  # seconds that one reader may take
VALUES = (None, True, False, 0, -1, 1, 7, 3.5, -0.0, 1e308, 10**18, -(10**18), 2**31, "", "x", "\x00", "é" * 300, [])
VALUES += ({}, [[]], [None], {"a": 1}, {"": {"": []}}, "../../etc/passwd", "/dev/zero", "owner/name", "1e400", "NaN")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Folder with a sharded `base`, `expanded`, an `adapter`, the `merged` model, and one record."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.build(folder / "base", 3, **helpers.SMALL)
    helpers.reshard(folder / "base", "200KB")
    vocab.expand(folder / "base", folder / "expanded")
    helpers.adapted(folder / "expanded", dora=True).save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    merge.merge(folder / "expanded", folder / "adapter", folder / "merged")
    draw_image(64, 64).save(folder / "0.png")
    record = make_record(0, width=64, height=64)
    record.images[:] = ["0.png"]
    write_jsonl(folder / "records.jsonl", [record])
    return folder


def readers(inputs: Path, out: Path) -> dict[str, list[Callable[[Path], Any]]]:
    """The readers of each kind of checkpoint."""
    return {
        "base": [
            lambda folder: base_model.fetch("m", {"source": "path", "path": str(folder)}, out / "fetched"),
            lambda folder: vocab.expand(folder, out / "expanded"),
        ],
        "expanded": [
            vocab.check,
            vocab.verified_ids,
            lambda folder: examine(inputs / "records.jsonl", 0, folder, Custom()),
            lambda folder: merge.merge(folder, inputs / "adapter", out / "merged"),
        ],
        "adapter": [lambda folder: merge.merge(inputs / "expanded", folder, out / "merged")],
        "merged": [
            lambda folder: settings_of(folder, "detect"),
            encode_image,
        ],
    }


def encode_image(folder: Path) -> None:
    """Load the model and encode an image with its prompt."""
    predictor = Predictor.from_checkpoint(folder, PredictOptions(), PromptStyle(), "cpu")
    predictor.encode([draw_image(64, 64)], [predictor.prompt_text()])


def damage(file: Path, rng: random.Random) -> str:
    """Change a JSON file, or the header of a safetensors file; returns what was done."""
    if file.suffix == ".safetensors":
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        text, how = damaged_text(content[8 : 8 + length], rng)
        size = rng.choice([len(text)] * 8 + [0, 2**63, len(text) + 1])
        file.unlink()
        file.write_bytes(size.to_bytes(8, "little") + text + content[8 + length :])
        return how
    text, how = damaged_text(file.read_bytes(), rng)
    file.unlink()
    file.write_bytes(text)
    return how


def damaged_text(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """JSON with one value changed, removed, repeated or renamed, or with damaged bytes."""
    kind = rng.choice(["replace"] * 6 + ["remove"] * 3 + ["rename", "nest", "repeat", "bytes", "cut", "bom"])
    if kind == "cut":
        return text[: rng.randrange(len(text))], kind
    if kind == "bom":
        return b"\xef\xbb\xbf" + text, kind
    if kind == "bytes":
        at = rng.randrange(len(text))
        return text[:at] + rng.choice([b"\xff", b"\x00", b'"', b"}", b"[" * 5000, b"NaN"]) + text[at + 1 :], kind
    content = json.loads(text)
    holders = list(containers(content))
    holder = rng.choice(holders[: rng.choice([5, 50, len(holders)])])  # small ones near the root more often
    if not holder:
        return text, "nothing"
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    where = f"{kind} {key!r}"
    if kind == "replace":
        holder[key] = rng.choice([*VALUES, holder[key], [holder[key]], str(holder[key])])
        where += f" by {str(holder[key])[:40]!r}"
    elif kind == "remove":
        del holder[key]
    elif kind == "nest":
        holder[key] = {"a": [holder[key]]}
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice(["", "x" * 300, f"{key} ", "\ud800"])] = holder.pop(key)
    elif kind == "repeat" and isinstance(holder, dict):
        body = json.dumps(content)[1:] or "}"
        return (f"{{{json.dumps(str(key))}: {json.dumps(rng.choice(VALUES))}, " + body).encode(), where
    return json.dumps(content).encode(), where


def containers(content: Any) -> Iterator[dict | list]:
    """The objects and lists of a JSON value, from the root down."""
    pending = collections.deque([content])
    while pending:
        value = pending.popleft()
        if isinstance(value, dict | list):
            yield value
            pending.extend(list(value.values() if isinstance(value, dict) else value)[:2000])


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a folder whose weights are hard links."""
    return Path(
        shutil.copytree(source, target, copy_function=lambda a, b: (os.link if is_weights(a) else shutil.copy)(a, b))
    )


def is_weights(file: str) -> bool:
    return file.endswith(".safetensors")


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(inputs: Path, out: Path, count: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Damage `count` checkpoints; returns how many readers accepted and refused them, and the failures."""
    outcomes, failures = collections.Counter(), []
    for case in range(count):
        rng = random.Random(f"{seed}/{case}")
        kind = rng.choice(["base", "expanded", "expanded", "adapter", "merged", "merged"])
        folder = copy_of(inputs / kind, out / "copy")
        (folder / "SHA256SUMS").unlink(missing_ok=True)  # which would reveal the damage before anything reads it
        names = sorted(f.name for f in folder.iterdir() if f.suffix in (".json", ".safetensors"))
        file = folder / rng.choice(names)
        how = damage(file, rng)
        for reader in readers(inputs, out)[kind]:
            try:
                with limited(LONGEST):
                    reader(folder)
                outcomes["accepted"] += 1
            except CoordExpError as error:
                outcomes["refused"] += 1
                str(error).encode("utf-8", "backslashreplace")
            except BaseException as error:
                trace = "".join(traceback.format_exception(error)[-4:])
                failures.append(f"case {case}, {kind}/{file.name}, {how}: {type(error).__name__}: {error}\n{trace}")
        shutil.rmtree(out)
        out.mkdir()
    return outcomes, failures


@pytest.mark.parametrize(
    ("count", "seed"), [(50, 1), pytest.param(2000, 2, marks=pytest.mark.soak)], ids=["short", "soak"]
)
def test_damaged_checkpoints_are_accepted_or_refused_with_an_error(inputs, tmp_path, count, seed):
    out = tmp_path / "out"
    out.mkdir()
    outcomes, failures = run(inputs, out, count, seed)
    print(f"{count} damaged checkpoints: {dict(outcomes)}, {len(failures)} failures")
    assert not failures, f"{len(failures)} failures, the first: {failures[0]}"
