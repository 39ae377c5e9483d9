"""Figures as inline SVG: deterministic, self-contained, coloured by the page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from coordexp.reporting.figures import Series, bars, intervals, lines

STEPS = [1, 2, 3, 4]
FIGURES = {
    "lines": lambda: lines(
        "Loss <1>", [Series("loss", STEPS, [5, 3, 2, 1]), Series("l1", STEPS, [1] * 4)], x_label="step", y_label="loss"
    ),
    "log": lambda: lines("Loss", [Series("loss", STEPS, [900, 30, 2, 0])], x_label="", y_label="", log_y=True),
    "one point": lambda: lines("Loss", [Series("loss", [1], [5])], x_label="step", y_label="loss"),
    "reliability": lambda: lines(
        "r", [Series("a", [0, 1], [0, 1])], x_label="", y_label="", x_range=(0, 1), y_range=(0, 1), diagonal=True
    ),
    "no points": lambda: lines("empty", [Series("a", [], [])], x_label="", y_label=""),
    "bars": lambda: bars("Bars", [("cat & dog", 3, "3 (5)"), ("cow", 0, "0")]),
    "no bars": lambda: bars("Bars", []),
    "intervals": lambda: intervals("I", [("AP", 0.1, (0.05, 0.2), "+0.1"), ("AP50", -0.1, None, "-0.1")]),
    "no intervals": lambda: intervals("I", []),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_inline_svg_in_the_colours_of_the_page(name):
    figure = str(FIGURES[name]())
    ElementTree.fromstring(figure)  # well-formed
    assert figure == str(FIGURES[name]())
    assert not re.search(r"#[0-9a-f]{6}|https?:|url\(|<style|<metadata|<\?xml", figure)
    assert len(figure) < 12_000


def test_titles_and_labels_are_escaped():
    assert "<figcaption>Loss &lt;1&gt;</figcaption>" in FIGURES["lines"]()
    assert "cat &amp; dog" in FIGURES["bars"]()


def test_lines_differ_in_colour_and_dashes():
    series = [Series(str(i), [0, 1], [i, i + 1]) for i in range(9)]
    figure = lines("many", series, x_label="x", y_label="y")
    styles = re.findall(
        r'style="fill: none; (?:stroke-dasharray: [^;]*; stroke-dashoffset: [^;]*; )?stroke: var\(--s\d\)[^"]*"', figure
    )
    assert len(set(styles)) >= 9


def test_non_finite_values_are_left_out():
    figure = lines("gap", [Series("a", [0, 1, 2], [1.0, math.nan, math.inf])], x_label="x", y_label="y")
    assert "nan" not in figure and "inf" not in figure
