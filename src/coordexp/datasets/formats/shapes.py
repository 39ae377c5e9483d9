"""Generated images of coloured shapes, annotated in LVIS format.

An annotation covers the *visible* part of a shape: its outline without the parts that other shapes or the border hide,
and the bounds of that outline. So image and annotation always agree. Label noise (`box_noise`) moves boxes only; the
outlines stay exact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import shapely
from PIL import Image, ImageDraw

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import FORMATS, PerSplit
from coordexp.datasets.formats.generated import GeneratedFormat, overrides_of
from coordexp.runtime.io import atomic_dir

COLORS = {
    "red": ((220, 40, 40), ["crimson", "scarlet"]),
    "green": ((40, 170, 60), ["emerald"]),
    "blue": ((45, 90, 220), ["azure", "cobalt"]),
    "yellow": ((235, 200, 40), ["golden"]),
    "purple": ((140, 60, 170), ["violet"]),
    "black": ((25, 25, 25), ["jet"]),
}
SHAPES = {"circle": ["disc"], "square": ["box"], "triangle": ["wedge"], "cross": ["plus"], "diamond": ["rhombus"]}
BACKGROUND = (225, 225, 220)
SUPERSAMPLING = 4
ATTEMPTS = 60  # placements tried for a shape before it is left out


Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ShapesOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn in the images of one split."""

    count: Annotated[int, msgspec.Meta(ge=1, description="number of images")] = 1000
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed; different seeds give independent images")] = 1
    image_size: Annotated[int, msgspec.Meta(ge=8, description="side of the square images, in pixels")] = 96
    objects: Annotated[tuple[int, int], msgspec.Meta(description="minimum and maximum number of shapes per image")] = (
        1,
        3,
    )
    colors: Annotated[
        tuple[Literal[tuple(COLORS)], ...], msgspec.Meta(min_length=1, description="colours of the shapes")
    ] = ("red", "green", "blue", "yellow")
    shapes: Annotated[tuple[Literal[tuple(SHAPES)], ...], msgspec.Meta(min_length=1, description="kinds of shapes")] = (
        "circle",
        "square",
        "triangle",
        "cross",
    )
    size: Annotated[
        tuple[float, float],
        msgspec.Meta(description="minimum and maximum extent of a shape, as fractions of the image's side"),
    ] = (0.2, 0.5)
    aspect: Annotated[float, msgspec.Meta(ge=1, description="largest ratio of a shape's sides; 1: no stretching")] = 1.0
    occlusion: Annotated[
        Fraction, msgspec.Meta(description="largest fraction of a shape that other shapes may hide")
    ] = 0.3
    small: Annotated[Fraction, msgspec.Meta(description="probability that a shape is drawn at `small_size`")] = 0.0
    small_size: Annotated[
        tuple[float, float], msgspec.Meta(description="extent of small shapes, as fractions of the image's side")
    ] = (0.06, 0.12)
    crowd: Annotated[
        Fraction, msgspec.Meta(description="probability that all shapes of an image are of one category")
    ] = 0.0
    tail: Annotated[
        tuple[float, float],
        msgspec.Meta(description="sampling weight of common and of rare categories; that of frequent ones is 1"),
    ] = (0.6, 0.3)
    noise: Annotated[
        float, msgspec.Meta(ge=0, description="standard deviation of the image noise, in grey levels of 0..255")
    ] = 0.0
    box_noise: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="label noise: standard deviation of the shift of a side, as a fraction of width or height"
        ),
    ] = 0.0
    not_exhaustive: Annotated[
        Fraction,
        msgspec.Meta(
            description="probability that one category of an image is listed as not exhaustively annotated; "
            "it loses an annotation if it has several"
        ),
    ] = 0.02
    negatives: Annotated[int, msgspec.Meta(ge=0, description="verified absent categories listed per image")] = 3

    def __post_init__(self) -> None:
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects: expected 0 <= fewest <= most, found {list(self.objects)}")
        for name in ("size", "small_size"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}: expected 0 < smallest <= largest <= 1, found {[low, high]}")


ShapesSplit = overrides_of(ShapesOptions, "ShapesSplit")


class ShapesDataset(ShapesOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a generated dataset. Those of a split override those of the dataset."""

    splits: Annotated[PerSplit[ShapesSplit], msgspec.Meta(description="number of images and seed of each split")]


@FORMATS.register("shapes")
class ShapesFormat(GeneratedFormat[ShapesDataset]):
    """Generated images of coloured shapes, annotated in LVIS format."""

    Options = ShapesDataset
    SplitOptions = ShapesOptions
    federated = True

    def generate(self, split: str, images_dir: Path, annotations: Path) -> None:
        """See `GeneratedFormat.generate`."""
        generate(self.split_options(split), images_dir, annotations, f"generated shapes, {split}")


def categories(options: ShapesOptions) -> list[dict]:
    """Categories in LVIS format with ids from 1, the same for all splits with these colours and shapes."""
    table = []
    names = [(color, shape) for shape in options.shapes for color in options.colors]
    for i, (color, shape) in enumerate(names):
        synonyms = [f"{c}_{s}" for c in [color, *COLORS[color][1]] for s in [shape, *SHAPES[shape]]]
        tier = "r" if i % 5 == 4 else "c" if i % 5 == 2 else "f"
        text = {"synset": f"{color}_{shape}.n.01", "def": f"a {shape} drawn in {color}"}
        table.append({"id": i + 1, "name": f"{color}_{shape}", "synonyms": synonyms, "frequency": tier, **text})
        table[-1] |= {"image_count": 0, "instance_count": 0}
    return table


def generate(options: ShapesOptions, images_dir: Path, annotations: Path, title: str = "generated shapes") -> None:
    """Write PNG images to the folder `images_dir` and their LVIS annotations to a file, each complete or not at all.

    The same options give the same bytes.
    """
    table = categories(options)
    info = {"description": title, "options": msgspec.to_builtins(options)}
    with AnnotationWriter(annotations, info=info) as writer, atomic_dir(images_dir) as folder:
        for i in range(options.count):
            rng = np.random.default_rng([options.seed, i])
            placed = place_shapes(options, table, rng)
            image = render_shapes(placed, options, table, rng)
            shapes = [annotation_of(shape, options, rng) for shape in placed]
            image_id, name = i + 1, f"{i + 1:06d}.png"
            image.save(folder / name, compress_level=1)
            entry = {"id": image_id, "file_name": name, "width": image.width, "height": image.height}
            writer.add_image(entry | _federated_lists(options, table, shapes, rng))
            for shape in shapes:
                table[shape["category_id"] - 1]["instance_count"] += 1
                writer.add_annotation({"id": writer.annotation_count + 1, "image_id": image_id, **shape})
            for category_id in {shape["category_id"] for shape in shapes}:
                table[category_id - 1]["image_count"] += 1
        writer.set_categories(table)


def outline(shape: str, box: tuple[float, float, float, float]) -> shapely.Polygon:
    """The shape that fills `box` [x1, y1, x2, y2], in the box's units."""
    x1, y1, x2, y2 = box
    if shape == "circle":
        angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    else:
        unit = np.array(_UNIT[shape])
    return shapely.Polygon(unit * [x2 - x1, y2 - y1] + [x1, y1])


_UNIT = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "cross": [
        *[(1 / 3, 0), (2 / 3, 0), (2 / 3, 1 / 3), (1, 1 / 3), (1, 2 / 3), (2 / 3, 2 / 3)],
        *[(2 / 3, 1), (1 / 3, 1), (1 / 3, 2 / 3), (0, 2 / 3), (0, 1 / 3), (1 / 3, 1 / 3)],
    ],
}


class PlacedShape(NamedTuple):
    """A shape in an image, in pixels; `category` is an index into the table of categories."""

    category: int
    full: shapely.Polygon
    visible: shapely.Geometry


def render_shapes(
    placed: list[PlacedShape], options: ShapesOptions, table: list[dict], rng: np.random.Generator
) -> Image.Image:
    """The image of these shapes, drawn in their order."""
    side = options.image_size
    canvas = Image.new("RGB", (side * SUPERSAMPLING,) * 2, BACKGROUND)
    brush = ImageDraw.Draw(canvas)
    for shape in placed:
        color = COLORS[table[shape.category]["name"].rsplit("_", 1)[0]][0]
        points = shapely.get_coordinates(shape.full) * SUPERSAMPLING - 0.5  # PIL counts pixel centres
        brush.polygon([tuple(p) for p in points.tolist()], fill=color)
    image = canvas.reduce(SUPERSAMPLING)
    if options.noise:
        grain = rng.normal(0, options.noise, (side, side, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


def annotation_of(shape: PlacedShape, options: ShapesOptions, rng: np.random.Generator) -> dict:
    """The annotation of a shape without ids."""
    box = _noisy_box(np.array(shape.visible.bounds), options.box_noise, options.image_size, rng)
    parts = [p for p in shapely.get_parts(shape.visible) if p.area > 0]
    xywh = [*box[:2], *(box[2:] - box[:2])]
    return {
        "category_id": shape.category + 1,
        "bbox": [round(float(v), 2) for v in xywh],
        "area": round(shape.visible.area, 2),
        "segmentation": [np.round(shapely.get_coordinates(p.exterior)[:-1], 2).ravel().tolist() for p in parts],
    }


def place_shapes(options: ShapesOptions, table: list[dict], rng: np.random.Generator) -> list[PlacedShape]:
    """Shapes at random positions, bottom to top."""
    side = options.image_size
    weight = np.array([{"f": 1.0, "c": options.tail[0], "r": options.tail[1]}[c["frequency"]] for c in table])
    weight /= weight.sum()
    crowd = int(rng.choice(len(table), p=weight)) if rng.random() < options.crowd else None
    frame = shapely.box(0, 0, side, side)
    placed: list[PlacedShape] = []
    for _ in range(int(rng.integers(options.objects[0], options.objects[1] + 1))):
        category = int(rng.choice(len(table), p=weight)) if crowd is None else crowd
        kind = table[category]["name"].rsplit("_", 1)[1]
        for _ in range(ATTEMPTS):
            full = outline(kind, _random_box(options, rng))
            if (below := _hide(placed, full, frame, options.occlusion)) is not None:
                placed = [*below, PlacedShape(category, full, shapely.intersection(full, frame))]
                break
    return placed


def _random_box(options: ShapesOptions, rng: np.random.Generator) -> tuple[float, float, float, float]:
    side = options.image_size
    low, high = options.small_size if rng.random() < options.small else options.size
    stretch = math.sqrt(math.exp(rng.uniform(-1, 1) * math.log(options.aspect)))
    extent = rng.uniform(low, high) * side
    w, h = min(extent * stretch, side), min(extent / stretch, side)
    x, y = rng.uniform(0, side - w), rng.uniform(0, side - h)
    return x, y, x + w, y + h


def _hide(
    placed: list[PlacedShape], full: shapely.Polygon, frame: shapely.Polygon, occlusion: float
) -> list[PlacedShape] | None:
    """`placed` with a shape of outline `full` on top; None if more than `occlusion` of a shape would be hidden."""
    below = []
    for shape in placed:
        rest = shapely.difference(shape.visible, full) if shapely.intersects(shape.visible, full) else shape.visible
        holes = any(p.interiors for p in shapely.get_parts(rest) if p.geom_type == "Polygon")
        if holes or rest.area < (1 - occlusion) * shapely.intersection(shape.full, frame).area:
            return None
        below.append(shape._replace(visible=rest))
    return below


def _noisy_box(box: np.ndarray, noise: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """A box [x1, y1, x2, y2] with label noise; unchanged where it would become thinner than a pixel."""
    if not noise:
        return box
    extent = np.tile(box[2:] - box[:2], 2)
    moved = np.clip(box + rng.normal(0, noise, 4) * extent, 0, side)
    return moved if (moved[2:] - moved[:2]).min() >= 1 else box


def _federated_lists(
    options: ShapesOptions, table: list[dict], annotations: list[dict], rng: np.random.Generator
) -> dict[str, list[int]]:
    """LVIS's lists for one image; a category that becomes not exhaustive loses one of several `annotations`."""
    not_exhaustive = []
    if annotations and rng.random() < options.not_exhaustive:
        chosen = annotations[int(rng.integers(len(annotations)))]["category_id"]
        same = [a for a in annotations if a["category_id"] == chosen]
        if len(same) > 1:
            annotations.remove(same[-1])
        not_exhaustive = [chosen]
    present = {a["category_id"] for a in annotations}
    absent = [c["id"] for c in table if c["id"] not in present]
    negative = rng.permutation(absent)[: options.negatives]
    return {"neg_category_ids": sorted(int(i) for i in negative), "not_exhaustive_category_ids": not_exhaustive}
