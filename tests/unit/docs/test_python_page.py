"""The examples of docs/python.md run, one after the other, in a folder with a checkpoint and images."""

from __future__ import annotations

import json
import re
from pathlib import Path

from inference_helpers import images

from coordexp.answers.inference_settings import FILE_NAME, InferenceSettings
from coordexp.runtime.io import write_json

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


def examples() -> list[str]:
    """The Python blocks of the page, without those that a comment excludes."""
    blocks = re.findall(r"(<!-- not run[^\n]*\n)?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [code for excluded, code in blocks if not excluded]


def test_the_examples_run(taught, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results/shapes_9").mkdir(parents=True)
    merged = Path("results/shapes_9/merged")
    merged.mkdir()
    for file in taught.iterdir():
        (merged / file.name).symlink_to(file)
    write_json(merged / FILE_NAME, InferenceSettings(max_blocks=15, min_blocks=1, factor=32, resize="shrink"))
    Path("images").mkdir()
    for n, image in enumerate(images(2)):
        image.save(f"images/{n}.png")
    images()[1].save("image.png")
    names: dict = {}
    for code in examples():
        exec(code, names)
    assert len(examples()) == 3 and Path("drawn.png").stat().st_size > 0
    assert len(json.loads(Path("coco.json").read_text())["annotations"]) == sum(map(len, names["results"])) > 0
    assert re.search(r"^images/1.png \d$", capsys.readouterr().out, flags=re.MULTILINE)
