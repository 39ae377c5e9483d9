"""Detection in loose image files: formats, EXIF rotation, polygons, calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inference_helpers import SIZES, images, taught_checkpoint
from PIL import Image

from coordexp.answers.render import PromptStyle
from coordexp.cli import main
from coordexp.datasets.images import prepare_image, upright_size
from coordexp.inference.detect import ImageDetections, detect
from coordexp.inference.generation_state import GenerationLimits, GenerationState
from coordexp.inference.predictor import Predictor
from coordexp.runtime.errors import DataError


def test_boxes_are_in_pixels_of_each_file(taught, tmp_path):
    big = images()[0].resize((300, 200))
    exif = big.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    big.save(tmp_path / "a.jpg", exif=exif)
    images()[1].convert("L").save(tmp_path / "b.png")
    found = detect(taught, [tmp_path / "a.jpg", tmp_path / "b.png"], ["cat", "black cat"], max_blocks=9)
    assert [(f.width, f.height) for f in found] == [(200, 300), (128, 64)]
    for one in found:
        assert len(one.boxes()) == len(one.detections)
        for x1, y1, x2, y2 in one.boxes():
            assert 0 <= x1 <= x2 <= one.width and 0 <= y1 <= y2 <= one.height
    with pytest.raises(DataError, match=r"no\.png"):
        detect(taught, [tmp_path / "no.png"])
    with pytest.raises(DataError, match="no image"):
        detect(taught, [])


def loose(folder: Path) -> list[Path]:
    """Image files of several kinds: 16 bits per pixel, transparent, rotated by EXIF, and plain ones."""
    small, big = images()[0].resize((75, 50)), images()[1].resize((700, 300))
    deep = Image.fromarray(np.linspace(0, 65535, 75 * 50).reshape(50, 75).astype(np.uint16))
    clear = small.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = {"grows.jpg": small, "shrinks.jpg": big, "grows.png": small, "shrinks.png": big, "stays.png": images()[0]}
    for name, image in ({"deep.png": deep, "clear.png": clear} | plain).items():
        image.save(folder / name)
    for name, image in {"turned.jpg": small, "turned.tif": small.convert("L"), "turned.png": big}.items():
        image.save(folder / name, exif=exif)
    return sorted(folder.iterdir())


def test_detect_uses_the_pixels_that_conversion_writes(taught, tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    paths = loose(tmp_path / "loose")
    seen = []

    def answer(self, images, prompts):
        seen.extend(images)
        return [GenerationState(self.grammar(), GenerationLimits(1, 1, 1, 1)) for _ in images]

    monkeypatch.setattr(Predictor, "answer", answer)
    found = detect(taught, paths, max_blocks=15)
    monkeypatch.setattr(
        "coordexp.datasets.images._enlarged", lambda *args: None
    )  # which encodes the same pixels as JPEG
    for path, one, image in zip(paths, found, seen, strict=True):
        assert (one.width, one.height) == upright_size(path)
        target = tmp_path / "converted" / f"{path.name}.png"
        prepare_image(path, target, (one.width, one.height), image.size, 95)
        assert image.mode == "RGB" and (np.asarray(image) == np.asarray(Image.open(target))).all(), path


@pytest.mark.parametrize("name", ["deep.png", "clear.png", "turned.jpg", "turned.tif"])
def test_the_overlay_is_drawn_on_the_upright_image(taught, tmp_path, monkeypatch, name):
    (tmp_path / "loose").mkdir()
    path = next(path for path in loose(tmp_path / "loose") if path.name == name)
    size = upright_size(path)
    monkeypatch.setattr(
        "coordexp.inference.detect.detect", lambda *a, **k: [ImageDetections(str(path), *size, [], "", {})]
    )
    assert main(["detect", str(path), "--model", str(taught), "--out", str(tmp_path / "drawn.png")]) == 0
    prepare_image(path, tmp_path / "expected.png", size, size, 95)
    assert (np.asarray(Image.open(tmp_path / "drawn.png")) == np.asarray(Image.open(tmp_path / "expected.png"))).all()


def test_polygons_are_detected_on_request(tmp_path, capsys):
    model = str(taught_checkpoint(PromptStyle(), poly=True, steps=50))
    paths = [str(tmp_path / f"{n}.png") for n in range(len(SIZES))]
    for path, image in zip(paths, images(), strict=True):
        image.resize((image.width * 2, image.height * 2)).save(path)
    rows = {}
    for options in ((), ("--polygons",)):
        assert main(["detect", *paths, "--model", model, "--max-blocks", "15", *options]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows[options] = [(row, size) for line, size in zip(lines, SIZES, strict=True) for row in line["detections"]]
    assert not any("poly" in row for row, _ in rows[()])
    outlines = [(row["poly"], row["bbox"], size) for row, size in rows["--polygons",] if "poly" in row]
    assert 0 < len(outlines) < len(rows["--polygons",])
    for poly, box, (width, height) in outlines:
        xs, ys = poly[0::2], poly[1::2]
        assert len(xs) == len(ys) >= 3 and box == [min(xs), min(ys), max(xs), max(ys)]
        assert max(xs) <= 2 * width and max(ys) <= 2 * height
