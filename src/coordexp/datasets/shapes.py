"""Generated images of coloured shapes in LVIS format: the embedded data set.

What is annotated is what is *visible*: the outline of a shape without the parts that other shapes
or the border hide, and the bounds of that outline. So image and annotation always agree. Label
noise (`box_noise`) moves boxes only; the outlines stay exact.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import shapely
from PIL import Image, ImageDraw

from coordexp.records import Source
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import atomic_dir, atomic_open, sha256_file

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
ATTEMPTS = 60  # placements tried for one shape before the image goes on without it


class ShapesOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is drawn. Sizes are fractions of the image's side, probabilities are in [0, 1].

    objects: fewest and most shapes a image. colors, shapes: names out of COLORS and SHAPES.
    size: smallest and largest extent of a shape; aspect: its largest stretch (1 = none).
    occlusion: largest hidden share of any shape. small: probability that a shape is drawn at
    `small_size` instead. crowd: probability that all shapes of a image are of one category.
    tail: weight of common and rare categories against frequent ones; `frequency` r/c/f names these
    tiers (LVIS counts images: so small a set would be all `f`). noise: standard deviation of
    background noise in grey levels. box_noise: standard deviation of each box side's error as a
    fraction of the box. not_exhaustive: probability that one category of a image is marked as not
    exhaustively annotated (and loses an instance when it has several). negatives: verified absent
    categories a image.
    """

    image_size: int = 96
    objects: tuple[int, int] = (1, 3)
    count: int = 1000
    seed: int = 1
    colors: tuple[str, ...] = ("red", "green", "blue", "yellow")
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross")
    size: tuple[float, float] = (0.2, 0.5)
    aspect: float = 1.0
    occlusion: float = 0.3
    small: float = 0.0
    small_size: tuple[float, float] = (0.06, 0.12)
    crowd: float = 0.0
    tail: tuple[float, float] = (0.6, 0.3)
    noise: float = 0.0
    box_noise: float = 0.0
    not_exhaustive: float = 0.02
    negatives: int = 3


def options_for(dataset: dict, split: str) -> ShapesOptions:
    """Options of `split` from the config entry of the data set; knobs may stand under `difficulty` too.

    A split's own keys win over `difficulty`, and that over the entry's. ConfigError for an unknown
    key, a wrong type, or a split that is not there.
    """
    splits = {k: v for k, v in dataset.items() if isinstance(v, dict) and k != "difficulty"}
    if split not in splits:
        fix = f"add a split {split!r} with count and seed"
        raise ConfigError(located("no such split", field="data.shapes", found=split, expected=sorted(splits), fix=fix))
    other = {"format", "root", "difficulty", *splits}
    shared = {k: v for k, v in dataset.items() if k not in other} | (dataset.get("difficulty") or {})
    try:
        options = msgspec.convert({**shared, **splits[split]}, ShapesOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(located(str(error), field=f"data.shapes ({split})")) from error
    _check(options)
    return options


def categories(options: ShapesOptions) -> list[dict]:
    """The LVIS category table (ids from 1); one table for every split of the same colours and shapes."""
    table = []
    names = [(color, shape) for shape in options.shapes for color in options.colors]
    for i, (color, shape) in enumerate(names):
        synonyms = [f"{c}_{s}" for c in [color, *COLORS[color][1]] for s in [shape, *SHAPES[shape]]]
        tier = "r" if i % 5 == 4 else "c" if i % 5 == 2 else "f"
        text = {"synset": f"{color}_{shape}.n.01", "def": f"a {shape} drawn in {color}"}
        table.append({"id": i + 1, "name": f"{color}_{shape}", "synonyms": synonyms, "frequency": tier, **text})
    return table


def generate(options: ShapesOptions, split: str, out_dir: str | Path) -> Source:
    """Write `images/{split}/*.png` and `annotations/shapes_{split}.json` under `out_dir`, whole or not at all.

    Same options, same bytes. Splits with different seeds are independent. Paths of the Source are
    relative to `out_dir`.
    """
    _check(options)
    out_dir = Path(out_dir)
    table = categories(options)
    images, annotations = [], []
    with atomic_dir(out_dir / "images" / split) as folder:
        for i in range(options.count):
            rng = np.random.default_rng([options.seed, i])
            image, found = _draw(options, table, rng)
            image_id = i + 1
            name = f"{image_id:06d}.png"
            image.save(folder / name, compress_level=1)
            images.append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
            images[-1] |= _federated(options, table, found, rng)
            annotations += [{"id": len(annotations) + k, "image_id": image_id, **a} for k, a in enumerate(found, 1)]
    _count(table, annotations)
    path = out_dir / "annotations" / f"shapes_{split}.json"
    info = {"description": f"generated shapes, {split}", "options": msgspec.to_builtins(options)}
    format = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": table}
    with atomic_open(path) as handle:
        handle.write(msgspec.json.encode(format))
    names = {"annotations": f"annotations/shapes_{split}.json", "image_dirs": [f"images/{split}"]}
    return Source(dataset="shapes", split=split, format="lvis", annotations_sha256=sha256_file(path), **names)


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


def _draw(options: ShapesOptions, table: list[dict], rng: np.random.Generator) -> tuple[Image.Image, list[dict]]:
    """A image and its annotations without ids: visible outlines, in the order drawn."""
    side = options.image_size
    placed = _place(options, table, rng)
    canvas = Image.new("RGB", (side * SUPERSAMPLING,) * 2, BACKGROUND)
    brush = ImageDraw.Draw(canvas)
    for category, whole, _ in placed:
        color = COLORS[table[category]["name"].rsplit("_", 1)[0]][0]
        points = shapely.get_coordinates(whole) * SUPERSAMPLING - 0.5  # PIL counts pixel centres
        brush.polygon([tuple(p) for p in points.tolist()], fill=color)
    image = canvas.reduce(SUPERSAMPLING)
    if options.noise:
        grain = rng.normal(0, options.noise, (side, side, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    found = []
    for category, _, visible in placed:
        box = _noisy(np.array(visible.bounds), options.box_noise, side, rng)
        parts = [p for p in shapely.get_parts(visible) if p.area > 0]
        rings = [np.round(shapely.get_coordinates(p.exterior)[:-1], 2).ravel().tolist() for p in parts]
        xywh = [*box[:2], *(box[2:] - box[:2])]
        found.append(
            {
                "category_id": category + 1,
                "bbox": [round(float(v), 2) for v in xywh],
                "area": round(visible.area, 2),
                "segmentation": rings,
            }
        )
    return image, found


def _place(options: ShapesOptions, table: list[dict], rng: np.random.Generator):
    """(category index, whole outline, visible outline) of each shape, in pixels, lowest first."""
    side = options.image_size
    weight = np.array([{"f": 1.0, "c": options.tail[0], "r": options.tail[1]}[c["frequency"]] for c in table])
    weight /= weight.sum()
    one = int(rng.choice(len(table), p=weight)) if rng.random() < options.crowd else None
    frame = shapely.box(0, 0, side, side)
    placed: list[tuple[int, shapely.Polygon, shapely.Geometry]] = []
    for _ in range(int(rng.integers(options.objects[0], options.objects[1] + 1))):
        category = int(rng.choice(len(table), p=weight)) if one is None else one
        shape = table[category]["name"].rsplit("_", 1)[1]
        for _ in range(ATTEMPTS):
            whole = outline(shape, _random_box(options, rng))
            if (added := _on_top(placed, whole, frame, options.occlusion)) is not None:
                placed = [*added, (category, whole, shapely.intersection(whole, frame))]
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


def _on_top(placed, whole: shapely.Polygon, frame: shapely.Polygon, occlusion: float):
    """`placed` with the part that `whole` hides taken away; None when too much of a shape would vanish."""
    left = []
    for category, lower, visible in placed:
        rest = shapely.difference(visible, whole) if shapely.intersects(visible, whole) else visible
        holes = any(p.interiors for p in shapely.get_parts(rest) if p.geom_type == "Polygon")
        if holes or rest.area < (1 - occlusion) * shapely.intersection(lower, frame).area:
            return None
        left.append((category, lower, rest))
    return left


def _noisy(box: np.ndarray, noise: float, side: int, rng: np.random.Generator) -> np.ndarray:
    if not noise:
        return box
    extent = np.tile(box[2:] - box[:2], 2)
    moved = np.clip(box + rng.normal(0, noise, 4) * extent, 0, side)
    return moved if (moved[2:] - moved[:2]).min() >= 1 else box


def _federated(options: ShapesOptions, table: list[dict], found: list[dict], rng: np.random.Generator) -> dict:
    """LVIS's lists of one image; takes an instance out of `found` where a category is not exhaustive."""
    not_exhaustive = []
    if found and rng.random() < options.not_exhaustive:
        chosen = found[int(rng.integers(len(found)))]["category_id"]
        same = [a for a in found if a["category_id"] == chosen]
        if len(same) > 1:
            found.remove(same[-1])
        not_exhaustive = [chosen]
    present = {a["category_id"] for a in found}
    absent = [c["id"] for c in table if c["id"] not in present]
    chosen = rng.permutation(absent)[: options.negatives]
    return {
        "neg_category_ids": sorted(int(i) for i in chosen),
        "not_exhaustive_category_ids": not_exhaustive,
    }


def _count(table: list[dict], annotations: list[dict]) -> None:
    for category in table:
        own = [a["image_id"] for a in annotations if a["category_id"] == category["id"]]
        category |= {"image_count": len(set(own)), "instance_count": len(own)}


def _check(options: ShapesOptions) -> None:
    unknown = sorted((set(options.colors) - set(COLORS)) | (set(options.shapes) - set(SHAPES)))
    if unknown:
        expected = sorted(COLORS) + sorted(SHAPES)
        raise ConfigError(located("unknown colour or shape", field="data.shapes", found=unknown, expected=expected))
    if not 0 <= options.objects[0] <= options.objects[1] or options.count < 1 or options.image_size < 8:
        found = {"objects": options.objects, "count": options.count, "image_size": options.image_size}
        expected = "objects [min, max] with 0 <= min <= max, count >= 1, image_size >= 8"
        raise ConfigError(located("impossible sizes", field="data.shapes", expected=expected, found=found))
    if not 0 < options.size[0] <= options.size[1] <= 1 or options.aspect < 1:
        found = {"size": options.size, "aspect": options.aspect}
        expected = "0 < size[0] <= size[1] <= 1, aspect >= 1"
        raise ConfigError(located("impossible sizes", field="data.shapes", expected=expected, found=found))
