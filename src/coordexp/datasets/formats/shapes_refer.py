"""Generated images of coloured shapes with phrases about them, for grounding.

The phrases and their answers are computed from the geometry of the shapes:

    the small triangle                     attributes: exactly one shape has them
    all red squares                        several shapes
    the leftmost red square                an extreme among several shapes
    the small triangle above the blue one  a relation to one other shape

A phrase is used only if its answer is clear: relative positions differ by at least MARGIN. A phrase that describes
nothing is of the same kinds: no shape has the attributes, or none is in that position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from coordexp.datasets.annotation_writer import AnnotationWriter
from coordexp.datasets.formats.base import FORMATS, PerSplit
from coordexp.datasets.formats.generated import GeneratedFormat, overrides_of
from coordexp.datasets.formats.shapes import (
    COLORS,
    SHAPES,
    Fraction,
    ShapesOptions,
    annotation_of,
    categories,
    place_shapes,
    render_shapes,
)
from coordexp.runtime.io import atomic_dir

MARGIN = 0.1  # by which centres differ along an axis for one shape to be further left, right, up or down
ATTEMPTS = 200  # phrases tried before an image gets one fewer
EXTREMES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}  # (axis, direction)
RELATIONS = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
SIZES = ("small", "large")


class ShapesReferOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn in the images of one split, and what the phrases are about."""

    count: Annotated[int, Meta(ge=1, description="number of images")] = 1000
    seed: Annotated[int, Meta(ge=0, description="seed; different seeds give independent images")] = 1
    image_size: Annotated[int, Meta(ge=8, description="side of the square images, in pixels")] = 96
    objects: Annotated[
        tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]],
        Meta(description="minimum and maximum number of shapes per image"),
    ] = (2, 4)
    colors: Annotated[tuple[Literal[tuple(COLORS)], ...], Meta(min_length=1, description="colours of the shapes")] = (
        "red",
        "green",
        "blue",
        "yellow",
    )
    shapes: Annotated[tuple[Literal[tuple(SHAPES)], ...], Meta(min_length=1, description="kinds of shapes")] = (
        "square",
        "triangle",
    )
    large_size: Annotated[
        tuple[float, float], Meta(description="extent of large shapes, as fractions of the image's side")
    ] = (0.3, 0.42)
    small_size: Annotated[
        tuple[float, float], Meta(description="extent of small shapes, as fractions of the image's side")
    ] = (0.15, 0.22)
    small: Annotated[Fraction, Meta(description="probability that a shape is small")] = 0.5
    phrases: Annotated[int, Meta(ge=1, description="number of phrases per image")] = 4
    several: Annotated[Fraction, Meta(description="fraction of the phrases that describe several shapes")] = 0.15
    absent: Annotated[Fraction, Meta(description="fraction of the phrases that describe nothing in the image")] = 0.2

    def __post_init__(self) -> None:
        if self.objects[0] > self.objects[1]:
            raise ValueError(f"objects: expected the smaller number first, found {list(self.objects)}")
        limits = (0, *self.small_size, *self.large_size, 1)
        if not (0 < limits[1] <= limits[2] < limits[3] <= limits[4] <= 1):
            found = [list(self.small_size), list(self.large_size)]
            raise ValueError(f"small_size, large_size: expected two separate ranges, small sizes first, found {found}")
        if self.several + self.absent > 1:
            raise ValueError(f"several + absent: expected at most 1, found {self.several + self.absent:g}")


ShapesReferSplit = overrides_of(ShapesReferOptions, "ShapesReferSplit")


class ShapesReferDataset(ShapesReferOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a generated dataset. Those of a split override those of the dataset."""

    splits: Annotated[PerSplit[ShapesReferSplit], Meta(description="number of images and seed of each split")]


@FORMATS.register("shapes_refer")
class ShapesReferFormat(GeneratedFormat[ShapesReferDataset]):
    """Generated images of coloured shapes with phrases, annotated in COCO format."""

    Options = ShapesReferDataset
    SplitOptions = ShapesReferOptions

    def generate(self, split: str, images_dir: Path, annotations: Path) -> None:
        """See `GeneratedFormat.generate`."""
        generate(self.split_options(split), images_dir, annotations)


class Shape(NamedTuple):
    """A shape of an image; its centre in fractions of the image's side."""

    size: str
    color: str
    kind: str
    center: tuple[float, float]


class Noun(NamedTuple):
    """Attributes of shapes; None: any."""

    size: str | None = None
    color: str | None = None
    kind: str | None = None

    def of(self, shapes: Sequence[Shape]) -> list[int]:
        """Indices of the shapes with these attributes."""
        return [i for i, s in enumerate(shapes) if all(a in (None, b) for a, b in zip(self, s[:3], strict=True))]

    def text(self, plural: bool = False) -> str:
        """`small red square`; `shape` if the kind does not matter."""
        kind = self.kind or "shape"
        ending = ("es" if kind.endswith("s") else "s") if plural else ""
        return " ".join(word for word in (self.size, self.color, kind + ending) if word)


class Answered(NamedTuple):
    """A phrase and the indices of the shapes that it describes."""

    text: str
    shapes: list[int]


def generate(options: ShapesReferOptions, images_dir: Path, annotations: Path) -> None:
    """Write PNG images to the folder `images_dir` and their annotations to a file, each complete or not at all.

    The same options give the same bytes; a larger `count` only adds images.
    """
    drawn = ShapesOptions(
        image_size=options.image_size,
        objects=options.objects,
        colors=options.colors,
        shapes=options.shapes,
        size=options.large_size,
        small=options.small,
        small_size=options.small_size,
        tail=(1.0, 1.0),
        occlusion=0.0,
    )
    table = [{"id": c["id"], "name": c["name"], "frequency": c["frequency"]} for c in categories(drawn)]
    info = {"description": "generated shapes with phrases", "options": msgspec.to_builtins(options)}
    with AnnotationWriter(annotations, info=info) as writer, atomic_dir(images_dir) as folder:
        for i in range(options.count):
            rng = np.random.default_rng([options.seed, i])
            placed = place_shapes(drawn, table, rng)
            render_shapes(placed, drawn, table, rng).save(folder / f"{i + 1:06d}.png", compress_level=1)
            entries = [annotation_of(shape, drawn, rng) for shape in placed]
            shapes = [_shape(entry, table, options) for entry in entries]
            first = writer.annotation_count + 1
            for n, entry in enumerate(entries):
                writer.add_annotation({"id": first + n, "image_id": i + 1, "iscrowd": 0, **entry})
            phrases = [
                {"text": text, "annotation_ids": [first + n for n in found]}
                for text, found in draw_phrases(shapes, options, rng)
            ]
            size = {"width": options.image_size, "height": options.image_size}
            writer.add_image({"id": i + 1, "file_name": f"{i + 1:06d}.png", **size, "phrases": phrases})
        writer.set_categories([{"id": c["id"], "name": c["name"]} for c in table])


def _shape(entry: dict, table: Sequence[dict], options: ShapesReferOptions) -> Shape:
    """The attributes of an annotated shape."""
    color, kind = table[entry["category_id"] - 1]["name"].rsplit("_", 1)
    x, y, w, h = (value / options.image_size for value in entry["bbox"])
    limit = (options.small_size[1] + options.large_size[0]) / 2
    return Shape("small" if max(w, h) < limit else "large", color, kind, (x + w / 2, y + h / 2))


def draw_phrases(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> list[Answered]:
    """Up to `options.phrases` different phrases, which describe one, several or no shapes in the given fractions."""
    found: dict[str, Answered] = {}
    for _ in range(options.phrases):
        drawn = rng.random()
        wanted = 0 if drawn < options.absent else 2 if drawn < options.absent + options.several else 1
        draws = _PLURAL if wanted == 2 else _SINGULAR
        for _ in range(ATTEMPTS):
            phrase = draws[int(rng.integers(len(draws)))](shapes, options, rng)
            if phrase and min(len(phrase.shapes), 2) == wanted and phrase.text not in found:
                found[phrase.text] = phrase
                break
    return list(found.values())


def _draw_noun(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> Noun:
    """Some attributes of a shape in the image, or in half of the cases of any shape."""
    if rng.random() < 0.5:
        full = shapes[int(rng.integers(len(shapes)))][:3]
    else:
        full = tuple(values[int(rng.integers(len(values)))] for values in (SIZES, options.colors, options.shapes))
    kept = rng.random(3) < (0.4, 0.7, 0.8)
    return Noun(*(value if keep else None for value, keep in zip(full, kept, strict=True)))


def _attributes(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> Answered | None:
    noun = _draw_noun(shapes, options, rng)
    found = noun.of(shapes)
    return Answered(f"the {noun.text()}", found) if len(found) < 2 and any(noun) else None


def _plural(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> Answered | None:
    noun = _draw_noun(shapes, options, rng)
    return Answered(f"all {noun.text(plural=True)}", noun.of(shapes))


def _extreme(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> Answered | None:
    noun = _draw_noun(shapes, options, rng)
    word = list(EXTREMES)[int(rng.integers(len(EXTREMES)))]
    axis, direction = EXTREMES[word]
    found = sorted(noun.of(shapes), key=lambda i: -direction * shapes[i].center[axis])
    if len(found) == 1:
        return None
    if found and abs(shapes[found[0]].center[axis] - shapes[found[1]].center[axis]) < MARGIN:
        return None
    return Answered(f"the {word} {noun.text()}", found[:1])


def _relation(shapes: Sequence[Shape], options: ShapesReferOptions, rng: np.random.Generator) -> Answered | None:
    noun, other = _draw_noun(shapes, options, rng), _draw_noun(shapes, options, rng)
    text = other.text()
    if noun.kind and other.kind == noun.kind and other.color:
        text = " ".join(word for word in (other.size, other.color, "one") if word)
    anchor = other.of(shapes)
    if len(anchor) != 1 or not any(other):
        return None
    word = list(RELATIONS)[int(rng.integers(len(RELATIONS)))]
    axis, direction = RELATIONS[word]
    offsets = {i: shapes[i].center[axis] - shapes[anchor[0]].center[axis] for i in noun.of(shapes) if i != anchor[0]}
    if any(abs(offset) < MARGIN for offset in offsets.values()):
        return None
    found = [i for i, offset in offsets.items() if direction * offset > 0]
    return Answered(f"the {noun.text()} {word} the {text}", found) if len(found) < 2 else None


_Draw = Callable[[Sequence[Shape], ShapesReferOptions, np.random.Generator], Answered | None]
_SINGULAR: tuple[_Draw, ...] = (_attributes, _extreme, _relation)
_PLURAL: tuple[_Draw, ...] = (_plural,)
