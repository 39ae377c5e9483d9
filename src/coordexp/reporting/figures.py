"""Figures of the HTML pages: drawn by matplotlib, embedded as inline SVG that follows the colours of the page.

Figures are drawn in placeholder colours, which are then replaced by the page's CSS variables, so light mode, dark mode
and print need no second figure. Lines differ by colour (Okabe and Ito's palette) and by dash pattern. The same data
gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#a0a001", "#a0a002", "#a0a003", "#a0a004"
SERIES = tuple(f"#a0a01{i}" for i in range(6))
PALETTE = {INK: "ink", SOFT: "soft", GRID: "line", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES)}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)), (0, (1, 1)))
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.bottom": False,
    "xtick.minor.bottom": False,
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
}
WIDTH, ROW_HEIGHT = 6.0, 0.28  # inches


class Series(NamedTuple):
    """One line of a plot: its name and points in data units."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    markers: bool = False,
    log_y: bool = False,
) -> Markup:
    """A line plot; `diagonal` adds the line y = x, `markers` a dot at every point.

    `log_y` uses a logarithmic axis if the values are not negative and span more than a decade; values below 1/10,000 of
    the largest are drawn at the bottom. Non-finite values are left out.
    """
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)] for s in series]
    values = [y for line in points for _, y in line]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        floor = -math.inf
        if log_y and values and 0 <= 10 * min(values) < max(values):
            floor = max(min(values), max(values) * 1e-4)
            _log_axis(axes, floor, max(values))
        for i, (line, s) in enumerate(zip(points, series, strict=True)):
            colour, dash = SERIES[i % len(SERIES)], DASHES[(i + i // len(SERIES)) % len(DASHES)]
            marker = "o" if markers or len(line) == 1 else None
            xs, ys = [x for x, _ in line], [max(y, floor) for _, y in line]
            dots = {"marker": marker, "markersize": 5, "markerfacecolor": PAPER}
            axes.plot(xs, ys, color=colour, linestyle=dash, label=s.name, clip_on=False, **dots)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=SOFT, linestyle=DASHES[2], linewidth=1, clip_on=False)
        axes.set(xlabel=x_label, ylabel=y_label)
        if x_range:
            axes.set_xlim(x_range)
        if y_range:
            axes.set_ylim(y_range)
        axes.grid(clip_on=False)
        if len(series) > 1:
            handles = axes.get_lines()[: len(series)]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(series)), handlelength=3)

    return _figure(title, (WIDTH, 3.3), draw)


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, highest: float | None = None) -> Markup:
    """Horizontal bars; a row is (name, value, label at the end of the bar)."""
    top = highest or max((value for _, value, _ in rows), default=0.0) or 1.0

    def draw(figure: Figure) -> None:
        axes = _row_axes(figure, [name for name, *_ in rows])
        axes.set_xlim(0, 1.3 * top)
        axes.set_xticks([])
        axes.barh(range(len(rows)), [value for _, value, _ in rows], height=0.7, color=SERIES[0], clip_on=False)
        for i, (_, value, label) in enumerate(rows):
            axes.text(value + 0.02 * top, i, label, va="center", color=SOFT)

    return _figure(title, (WIDTH, ROW_HEIGHT * len(rows) + 0.1), draw)


def intervals(title: str, rows: Sequence[tuple[str, float, Sequence[float] | None, str]]) -> Markup:
    """Values with intervals on an axis centred at zero; a row is (name, value, (low, high) or None, label)."""
    reach = max((abs(v) for _, value, span, _ in rows for v in (value, *(span or ()))), default=0.0) or 1.0

    def draw(figure: Figure) -> None:
        axes = _row_axes(figure, [name for name, *_ in rows])
        axes.set_xlim(-1.05 * reach, 1.05 * reach)
        axes.set_xticks([-reach, 0, reach], [f"{-reach:+.3f}", "0", f"{reach:+.3f}"])
        axes.axvline(0, color=SOFT, linestyle=DASHES[2], linewidth=1, clip_on=False)
        for i, (_, value, span, label) in enumerate(rows):
            if span:
                axes.plot(span, [i, i], color=SERIES[0], clip_on=False)
            axes.plot(value, i, "o", color=SERIES[0], markerfacecolor=PAPER, clip_on=False)
            axes.text(1.02, i, label, va="center", color=SOFT, transform=axes.get_yaxis_transform())

    return _figure(title, (WIDTH, ROW_HEIGHT * len(rows) + 0.45), draw)


def _row_axes(figure: Figure, names: Sequence[str]) -> Axes:
    """Axes with one named row per value, the first on top, and no frame."""
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    return axes


def _log_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def drawing_style(**changes: Any) -> Iterator[None]:
    """matplotlib's own defaults with `changes`, whatever a `matplotlibrc` in the working or the home folder sets."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(changes)
        yield


def _figure(title: str, size: tuple[float, float], draw: Any) -> Markup:
    """An HTML figure: its title and the drawing as inline SVG."""
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with drawing_style(**STYLE, **{"svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    label = escape(title, quote=True)
    svg = _inline(buffer.getvalue(), label)
    return Markup(f'<figure class="plot"><figcaption>{label}</figcaption>{svg}</figure>')


def _inline(svg: str, label: str) -> str:
    """An SVG file of matplotlib as an element of the page: no headers, page fonts and colours, short numbers."""
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<defs>\s*</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r'(?<= )(?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"-?\d+\.\d+", _shorten, m.group()), body)
    for colour, name in PALETTE.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r">\s+<", "><", body)
    return f'<svg viewBox="{view_box}" role="img" aria-label="{label}">{body}'


def _shorten(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")
