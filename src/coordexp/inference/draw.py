"""Draw boxes and polygons over an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from coordexp.datasets.images import ImageError, open_image
from coordexp.records import Detection

# Okabe and Ito's palette (2008), distinguishable with every common form of colour blindness.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DARK = {"#009E73", "#0072B2", "#D55E00"}
BAND_ALPHA = 110  # of 255
_SOFTWARE, _OURS = 0x0131, "CoordExp"  # EXIF tag of the program that wrote an image, and its value
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw(
    image: Image.Image,
    detections: Sequence[Detection],
    min_score: float = 0.0,
    *,
    scores: bool = True,
    spread: bool = False,
) -> Image.Image:
    """A copy of `image` (RGB) with the outline, description and score of each detection of at least `min_score`.

    scores: write the scores, which annotations do not have.
    spread: shade a band around each side of a box, one standard deviation of its coordinate to both sides.

    Detections with a higher score are drawn on top. A description has the same colour in every image.
    """
    shown = sorted((d for d in detections if d.score >= min_score), key=lambda d: d.score)
    canvas = image.convert("RGB")
    if spread:
        canvas = _shaded(canvas, [detection for detection in shown if detection.spread and not detection.poly])
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(min(canvas.size) / 250))
    font = ImageFont.load_default(size=max(10, round(min(canvas.size) / 40)))
    for detection in shown:
        colour = colour_of(detection.desc)
        x1, y1, x2, y2 = _pixels(detection.norm, canvas.size)
        if detection.poly:
            points = _pixels(detection.poly, canvas.size)
            pen.line([*points, *points[:2]], fill=colour, width=width, joint="curve")
        else:
            pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        text = f"{detection.desc} {detection.score:.2f}" if scores else detection.desc
        _label(pen, text, [x1, y1], colour, font, canvas.size)
    return canvas


def save_drawing(image: Image.Image, path: str | Path) -> None:
    """Write an image that `is_drawing` recognises; the suffix of `path` decides the format."""
    exif = Image.Exif()
    exif[_SOFTWARE] = _OURS
    image.save(path, exif=exif)


def is_drawing(path: str | Path) -> bool:
    """Whether a file is an image that `save_drawing` wrote."""
    try:
        with open_image(path, None) as image:
            return image.getexif().get(_SOFTWARE) == _OURS
    except ImageError:
        return False


def colour_of(desc: str) -> str:
    """The colour of a description, the same in every run."""
    return PALETTE[hashlib.sha256(desc.encode()).digest()[0] % len(PALETTE)]


def _shaded(canvas: Image.Image, boxes: Sequence[Detection]) -> Image.Image:
    """`canvas` with a translucent band around each side of the boxes."""
    layer = Image.new("RGBA", canvas.size)
    pen = ImageDraw.Draw(layer)
    for detection in boxes:
        x1, y1, x2, y2 = _pixels(detection.norm, canvas.size)
        left, top, right, bottom = _pixels(detection.spread, canvas.size)
        colour = (*ImageColor.getrgb(colour_of(detection.desc)), BAND_ALPHA)
        for x, s in ((x1, left), (x2, right)):
            pen.rectangle((x - s, y1, x + s, max(y1, y2)), fill=colour)
        for y, s in ((y1, top), (y2, bottom)):
            pen.rectangle((x1, y - s, max(x1, x2), y + s), fill=colour)
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def _pixels(norm: Sequence[float], size: tuple[int, int]) -> list[float]:
    return [v * (size[n % 2] - 1) for n, v in enumerate(norm)]


def _label(
    pen: ImageDraw.ImageDraw, text: str, corner: list[float], colour: str, font: Font, size: tuple[int, int]
) -> None:
    """Text on a filled box above `corner`, moved inside the image if it would extend beyond it."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill="white" if colour in DARK else "black", font=font)
