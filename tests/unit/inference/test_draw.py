"""Overlays of boxes and polygons."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from coordexp.inference.draw import colour_of, draw, is_drawing, save_drawing
from coordexp.records import Detection


def test_only_outlines_and_labels_are_drawn():
    blank = Image.new("RGB", (200, 100), "white")
    found = [Detection("cat", [0.2, 0.5, 0.6, 0.9], 0.9), Detection("dog", [0.7, 0.5, 0.9, 0.9], 0.1)]
    pixels = np.asarray(draw(blank, found, min_score=0.5))
    colour = np.array([int(colour_of("cat")[i : i + 2], 16) for i in (1, 3, 5)])
    assert (pixels[70, 40] == colour).all() and (pixels[50, 80] == colour).all()
    assert (pixels[45:95, 130:190] == 255).all() and (pixels[55:85, 45:115] == 255).all()
    assert (np.asarray(blank) == 255).all()
    triangle = Detection("cat", [0.2, 0.2, 0.8, 0.8], 0.9, poly=[0.2, 0.8, 0.8, 0.8, 0.5, 0.2])
    pixels = np.asarray(draw(blank, [triangle]))
    assert (pixels[79, 100] == colour).all() and (pixels[30, 45] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_drawings_are_distinguished_from_other_images(tmp_path, suffix):
    image, path = Image.new("RGB", (8, 8)), tmp_path / f"image.{suffix}"
    image.save(path)
    assert not is_drawing(path)
    save_drawing(image, path)
    assert is_drawing(path)
