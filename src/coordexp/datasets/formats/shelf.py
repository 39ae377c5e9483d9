"""Generated images of shelves: like, thin books side by side, annotated in COCO format.

All books of an image have the same category, height and colour and nearly the same width, so one differs from its
neighbour only in its position: detectors that write boxes as text repeat or skip such objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image, ImageDraw

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import FORMATS, PerSplit
from coordexp.datasets.formats.generated import GeneratedFormat, add_boxes, overrides_of
from coordexp.runtime.io import atomic_dir

COLORS = {"red": (190, 50, 45), "green": (50, 140, 70), "blue": (50, 80, 180), "brown": (120, 80, 50)}
BACKGROUND, BOARD = (225, 225, 220), (150, 130, 110)
SHADE = 0.06  # standard deviation of the brightness of a book, as a fraction
WIDTH_NOISE = 0.08  # standard deviation of the width of a book, as a fraction of that of its image
MIN_WIDTH = 3.0  # pixels
MAX_HEIGHT = 0.9  # of a book, as a fraction of the image's height
BOTTOM = 0.95  # top of the board, as a fraction of the image's height
SUPERSAMPLING = 4

Positive = Annotated[float, Meta(gt=0)]


class ShelfOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn in the images of one split. Ranges contain both ends."""

    count: Annotated[int, Meta(ge=1, description="number of images")] = 1000
    seed: Annotated[int, Meta(ge=0, description="seed; different seeds give independent images")] = 1
    image_size: Annotated[
        tuple[Annotated[int, Meta(ge=32)], Annotated[int, Meta(ge=32)]],
        Meta(description="width and height in pixels"),
    ] = (192, 64)
    objects: Annotated[
        tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]],
        Meta(description="minimum and maximum number of books per image"),
    ] = (8, 20)
    width: Annotated[
        tuple[Positive, Positive],
        Meta(description="smallest and largest width of the books of an image, in pixels, if all of them fit"),
    ] = (7.0, 10.0)
    height: Annotated[
        tuple[Positive, Positive],
        Meta(description="smallest and largest height of the books of an image, as fractions of the image's height"),
    ] = (0.6, 0.85)
    gap: Annotated[
        tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=0)]],
        Meta(description="smallest and largest gap between neighbours, as fractions of their width"),
    ] = (0.1, 0.3)
    noise: Annotated[
        float, Meta(ge=0, description="standard deviation of the image noise, in grey levels of 0..255")
    ] = 4.0

    def __post_init__(self) -> None:
        for name in ("objects", "width", "height", "gap"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected the smaller value first, found {[low, high]}")
        if self.height[1] > MAX_HEIGHT:
            raise ValueError(f"height: expected at most {MAX_HEIGHT}, found {self.height[1]}")
        narrowest = self.image_size[0] / max(self.objects[1], 1) / (1 + self.gap[1])
        if narrowest < MIN_WIDTH:
            raise ValueError(
                f"objects: expected books at least {MIN_WIDTH:g} pixels wide, found {narrowest:.1f} for "
                f"{self.objects[1]} books in {self.image_size[0]} pixels"
            )


ShelfSplit = overrides_of(ShelfOptions, "ShelfSplit")


class ShelfDataset(ShelfOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a generated dataset. Those of a split override those of the dataset."""

    splits: Annotated[PerSplit[ShelfSplit], Meta(description="number of images and seed of each split")]


@FORMATS.register("shelf")
class ShelfFormat(GeneratedFormat[ShelfDataset]):
    """Generated images of books on a shelf, annotated in COCO format."""

    Options = ShelfDataset
    SplitOptions = ShelfOptions

    def generate(self, split: str, images_dir: Path, annotations: Path) -> None:
        """See `GeneratedFormat.generate`."""
        generate(self.split_options(split), images_dir, annotations)


class Shelf(NamedTuple):
    """The books of an image: their colour's name, boxes [N, 4] in pixels from left to right, brightness [N]."""

    color: str
    boxes: np.ndarray
    brightness: np.ndarray


def generate(options: ShelfOptions, images_dir: Path, annotations: Path) -> None:
    """Write PNG images to the folder `images_dir` and their COCO annotations to a file, each complete or not at all.

    The same options give the same bytes; a larger `count` only adds images.
    """
    ids = {name: n for n, name in enumerate(COLORS, start=1)}
    info = {"description": "generated shelves", "options": msgspec.to_builtins(options)}
    width, height = options.image_size
    with AnnotationWriter(annotations, info=info) as writer, atomic_dir(images_dir) as folder:
        for i in range(options.count):
            rng, name = np.random.default_rng([options.seed, i]), f"{i + 1:06d}.png"
            shelf = place_books(options, rng)
            draw_shelf(shelf, options, rng).save(folder / name, compress_level=1)
            writer.add_image({"id": i + 1, "file_name": name, "width": width, "height": height})
            add_boxes(writer, i + 1, ((ids[shelf.color], box) for box in shelf.boxes))
        writer.set_categories([{"id": n, "name": f"{name}_book"} for name, n in ids.items()])


def place_books(options: ShelfOptions, rng: np.random.Generator) -> Shelf:
    """A row of books at a random position; they become narrower if they do not fit otherwise."""
    color = str(rng.choice(list(COLORS)))
    count = int(rng.integers(options.objects[0], options.objects[1] + 1))
    width = rng.uniform(*options.width)
    widths = width * np.exp(rng.normal(0, WIDTH_NOISE, count))
    gaps = width * rng.uniform(*options.gap, count)  # the last one is beyond the last book
    extent = (widths + gaps).sum()
    if extent > options.image_size[0]:
        shrink = options.image_size[0] / extent
        widths, gaps, extent = widths * shrink, gaps * shrink, options.image_size[0]
    left = rng.uniform(0, options.image_size[0] - extent) + np.cumsum(widths + gaps) - widths - gaps
    bottom = options.image_size[1] * BOTTOM
    top = bottom - rng.uniform(*options.height) * options.image_size[1]
    boxes = np.stack([left, np.full(count, top), left + widths, np.full(count, bottom)], axis=1)
    return Shelf(color, boxes, np.exp(rng.normal(0, SHADE, count)))


def draw_shelf(shelf: Shelf, options: ShelfOptions, rng: np.random.Generator) -> Image.Image:
    """The image of a shelf."""
    width, height = options.image_size
    canvas = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), BACKGROUND)
    brush = ImageDraw.Draw(canvas)
    _fill(brush, (0, height * BOTTOM, width, height), np.array(BOARD))
    for box, brightness in zip(shelf.boxes, shelf.brightness, strict=True):
        _fill(brush, box, np.array(COLORS[shelf.color]) * brightness)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)
    grain = rng.normal(0, options.noise, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _fill(brush: ImageDraw.ImageDraw, box: tuple[float, ...] | np.ndarray, color: np.ndarray) -> None:
    """Fill a box given in pixels of the image; PIL includes the last pixel."""
    x1, y1, x2, y2 = (round(float(v) * SUPERSAMPLING) for v in box)
    brush.rectangle((x1, y1, x2 - 1, y2 - 1), fill=tuple(np.clip(np.round(color), 0, 255).astype(int).tolist()))
