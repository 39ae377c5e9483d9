"""Generated images that resemble microscope images of blood, annotated in COCO format, for pretraining.

Red cells are pale discs that overlap, white cells are large with dark purple nuclei, platelets are small and purple.
Colours, sizes, blur and noise vary between images. A box contains the part of a cell inside the image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image, ImageDraw, ImageFilter

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import FORMATS, PerSplit
from coordexp.datasets.formats.generated import GeneratedFormat, add_boxes, overrides_of
from coordexp.geometry import boxes
from coordexp.runtime.io import atomic_dir

CATEGORIES = ("WBC", "Platelets", "RBC")
DIAMETERS = {"WBC": (0.21, 0.5), "Platelets": (0.06, 0.11), "RBC": (0.16, 0.26)}  # fractions of the image's height
MAX_IOU = {"WBC": 0.05, "Platelets": 0.05, "RBC": 0.3}  # with any cell drawn before
MIN_VISIBLE = 0.3  # fraction of a cell's box inside the image
SUPERSAMPLING = 2
ATTEMPTS = 40  # positions tried for a cell before it is left out

Range = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


class CellsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn in the images of one split. Ranges contain both ends."""

    count: Annotated[int, Meta(ge=1, description="number of images")] = 1000
    seed: Annotated[int, Meta(ge=0, description="seed; different seeds give independent images")] = 1
    image_size: Annotated[
        tuple[Annotated[int, Meta(ge=32)], Annotated[int, Meta(ge=32)]],
        Meta(description="width and height in pixels"),
    ] = (256, 192)
    white: Annotated[Range, Meta(description="minimum and maximum number of white cells per image")] = (0, 2)
    platelets: Annotated[Range, Meta(description="minimum and maximum number of platelets per image")] = (0, 3)
    red: Annotated[Range, Meta(description="minimum and maximum number of red cells per image")] = (1, 15)
    zoom: Annotated[
        tuple[Annotated[float, Meta(gt=0)], Annotated[float, Meta(gt=0)]],
        Meta(description="minimum and maximum scale factor of all cells in an image"),
    ] = (0.9, 1.2)
    noise: Annotated[
        float, Meta(ge=0, description="largest standard deviation of the image noise, in grey levels of 0..255")
    ] = 6.0

    def __post_init__(self) -> None:
        for name in ("white", "platelets", "red", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected the smaller value first, found {[low, high]}")


CellsSplit = overrides_of(CellsOptions, "CellsSplit")


class CellsDataset(CellsOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a generated dataset. Those of a split override those of the dataset."""

    splits: Annotated[PerSplit[CellsSplit], Meta(description="number of images and seed of each split")]


@FORMATS.register("cells")
class CellsFormat(GeneratedFormat[CellsDataset]):
    """Generated images of blood cells, annotated in COCO format."""

    Options = CellsDataset
    SplitOptions = CellsOptions

    def generate(self, split: str, images_dir: Path, annotations: Path) -> None:
        """See `GeneratedFormat.generate`."""
        generate(self.split_options(split), images_dir, annotations)


class Cell(NamedTuple):
    """A cell in pixels: category, centre, two diameters, and the angle of the first in radians."""

    category: str
    center: tuple[float, float]
    diameters: tuple[float, float]
    angle: float

    @property
    def box(self) -> np.ndarray:
        """[x1, y1, x2, y2] of the whole ellipse, also outside the image."""
        a, b = np.array(self.diameters) / 2
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        half = np.hypot([a * cos, a * sin], [b * sin, b * cos])
        return np.concatenate([self.center - half, self.center + half])


def generate(options: CellsOptions, images_dir: Path, annotations: Path) -> None:
    """Write images (JPEG) to the folder `images_dir` and their COCO annotations to a file, each complete or not at all.

    The same options give the same bytes; a larger `count` only adds images.
    """
    ids = {name: n for n, name in enumerate(CATEGORIES, start=1)}
    info = {"description": "generated cells", "options": msgspec.to_builtins(options)}
    width, height = options.image_size
    with AnnotationWriter(annotations, info=info) as writer, atomic_dir(images_dir) as folder:
        for i in range(options.count):
            rng, name = np.random.default_rng([options.seed, i]), f"{i + 1:06d}.jpg"
            cells = place_cells(options, rng)
            draw_cells(cells, options, rng).save(folder / name, quality=95)
            writer.add_image({"id": i + 1, "file_name": name, "width": width, "height": height})
            clipped = ((ids[cell.category], boxes.clip(cell.box, width, height)) for cell in cells)
            add_boxes(writer, i + 1, clipped)
        writer.set_categories([{"id": n, "name": name} for name, n in ids.items()])


def place_cells(options: CellsOptions, rng: np.random.Generator) -> list[Cell]:
    """Cells at random positions, in the order of drawing: red cells are at the bottom."""
    numbers = {"RBC": options.red, "WBC": options.white, "Platelets": options.platelets}
    zoom = rng.uniform(*options.zoom)
    cells: list[Cell] = []
    for category, (low, high) in numbers.items():
        for _ in range(int(rng.integers(low, high + 1))):
            for _ in range(ATTEMPTS):
                cell = _random_cell(category, zoom, options, rng)
                if _fits(cell, cells, options):
                    cells.append(cell)
                    break
    return cells


def _random_cell(category: str, zoom: float, options: CellsOptions, rng: np.random.Generator) -> Cell:
    diameter = rng.uniform(*DIAMETERS[category]) * zoom * options.image_size[1]
    stretch = math.exp(rng.normal(0, 0.1))
    center = (rng.uniform(0, options.image_size[0]), rng.uniform(0, options.image_size[1]))
    return Cell(category, center, (diameter * stretch, diameter / stretch), rng.uniform(0, math.pi))


def _fits(cell: Cell, others: list[Cell], options: CellsOptions) -> bool:
    """Whether enough of the cell is inside the image and no other cell overlaps it too much."""
    visible = boxes.area(boxes.clip(cell.box, *options.image_size))
    if visible < MIN_VISIBLE * boxes.area(cell.box):
        return False
    return not others or boxes.iou(cell.box[None], np.stack([c.box for c in others])).max() <= MAX_IOU[cell.category]


def draw_cells(cells: list[Cell], options: CellsOptions, rng: np.random.Generator) -> Image.Image:
    """The image of the cells on a bright background with specks, with the blur and noise of a microscope."""
    width, height = options.image_size
    size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    background = rng.uniform((190, 185, 170), (235, 230, 225))
    canvas = Image.new("RGB", size, _rgb(background))
    red = background * rng.uniform((0.8, 0.62, 0.55), (0.98, 0.85, 0.85))
    purple = rng.uniform((70, 40, 130), (150, 100, 210))
    for _ in range(int(rng.integers(0, 6))):  # specks that are not cells
        spot = Cell("", (rng.uniform(0, width), rng.uniform(0, height)), (rng.uniform(2, 5),) * 2, 0.0)
        _paint(canvas, spot, background * rng.uniform(0.75, 0.95), 0.8)
    for cell in cells:
        _DRAW[cell.category](canvas, cell, red if cell.category == "RBC" else purple, rng)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2) * SUPERSAMPLING))
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)
    shade = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, width)[None, :, None]
    grain = rng.normal(0, rng.uniform(0, options.noise), pixels.shape)
    return Image.fromarray(np.clip(pixels * shade + grain, 0, 255).astype(np.uint8))


def _red(canvas: Image.Image, cell: Cell, color: np.ndarray, rng: np.random.Generator) -> None:
    color = color * rng.uniform(0.93, 1.05)
    _paint(canvas, cell, color * 0.9, 0.85)
    _paint(canvas, _shrunk(cell, 0.9, rng, 0.0), color, 0.85)
    if rng.random() < 0.5:  # the pale centre
        _paint(canvas, _shrunk(cell, rng.uniform(0.25, 0.6), rng, 0.1), color * rng.uniform(1.03, 1.25), 0.8)
    elif rng.random() < 0.4:  # a dark artefact
        _paint(canvas, _shrunk(cell, rng.uniform(0.1, 0.25), rng, 0.15), color * 0.6, 0.7)


def _white(canvas: Image.Image, cell: Cell, color: np.ndarray, rng: np.random.Generator) -> None:
    _paint(canvas, cell, color + (225 - color) * rng.uniform(0.2, 0.7), rng.uniform(0.7, 1.0))
    parts = int(rng.integers(1, 5))
    for _ in range(parts):
        scale = rng.uniform(0.7, 0.95) if parts == 1 else rng.uniform(0.4, 0.6)
        _paint(canvas, _shrunk(cell, scale, rng, 0.45 * (1 - scale)), color * rng.uniform(0.8, 1.05), 0.95)


def _platelet(canvas: Image.Image, cell: Cell, color: np.ndarray, rng: np.random.Generator) -> None:
    pale = color + (215 - color) * rng.uniform(0.2, 0.6)
    _paint(canvas, _shrunk(cell, 0.8, rng, 0.0), pale, rng.uniform(0.7, 1.0))
    _paint(canvas, _shrunk(cell, 0.45, rng, 0.1), color, 0.9)


_DRAW = {"RBC": _red, "WBC": _white, "Platelets": _platelet}


def _shrunk(cell: Cell, scale: float, rng: np.random.Generator, shift: float) -> Cell:
    """A similar ellipse inside the cell, moved by at most `shift` diameters."""
    center = np.array(cell.center) + rng.uniform(-shift, shift, 2) * np.array(cell.diameters)
    return cell._replace(center=tuple(center.tolist()), diameters=tuple(d * scale for d in cell.diameters))


def _paint(canvas: Image.Image, cell: Cell, color: np.ndarray, opacity: float) -> None:
    """Blend the ellipse of the cell into the canvas."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(cell.diameters) / 2
    cos, sin = math.cos(cell.angle), math.sin(cell.angle)
    points = (points @ np.array([[cos, sin], [-sin, cos]]) + cell.center) * SUPERSAMPLING
    left, top = np.floor(points.min(axis=0)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - (left, top)).tolist()], fill=round(255 * opacity))
    canvas.paste(_rgb(color), (int(left), int(top)), mask)


def _rgb(color: np.ndarray) -> tuple[int, int, int]:
    return tuple(np.clip(np.round(color), 0, 255).astype(int).tolist())
