"""Small plots as inline SVG: they scale with the page, print sharply and follow its colours.

Series differ by colour (Okabe and Ito's palette, safe for colour-blind readers) and by dash pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46


class Series(NamedTuple):
    """One line: name and its points in data units."""

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
    """A line plot with a legend; `diagonal` adds the line y = x, `markers` a dot at every point.

    `log_y` spreads positive values that span more than a decade logarithmically; what is below a ten-thousandth of
    the largest lies on the axis.
    """
    x_low, x_high = x_range or _span([v for s in series for v in s.x])
    values = [v for s in series for v in s.y if math.isfinite(v)]
    y_low, y_high = y_range or _span(values)
    log_y = log_y and 0 <= 10 * min(values, default=0) < y_high
    y_low = max(min(values), y_high * 1e-4) if log_y else y_low

    def share(y: float) -> float:
        if log_y:
            return math.log(max(y, y_low) / y_low) / math.log(y_high / y_low)
        return (y - y_low) / (y_high - y_low)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - share(y) * (_HEIGHT - _TOP - _BOTTOM)

    y_ticks = _decades(y_low, y_high) if log_y else _ticks(y_low, y_high)
    parts = _axes(x_low, y_low, _ticks(x_low, x_high), y_ticks, x_label, y_label, place)
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        parts.append(f'<line class="diagonal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for i, line in enumerate(series):
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="series s{i % 6}" stroke-dasharray="{_dash(i)}" points="{path}"/>')
        if markers or len(points) == 1:
            parts += [f'<circle class="dot s{i % 6}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points]
    return _figure(title, parts, _HEIGHT, [s.name for s in series])


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, highest: float | None = None) -> Markup:
    """Horizontal bars; a row is (name, value, text at its end)."""
    top = highest or max((value for _, value, _ in rows), default=1.0) or 1.0
    height, left, room = 30 * len(rows) + 6, 170, _WIDTH - 170 - 110
    parts = []
    for i, (name, value, text) in enumerate(rows):
        y, width = 4 + 30 * i, max(1.0, value / top * room)
        parts.append(f'<text class="tick" x="{left - 10}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="22" rx="3"/>')
        parts.append(f'<text class="tick" x="{left + width + 8:.1f}" y="{y + 16}">{escape(text)}</text>')
    return _figure(title, parts, height, [])


def intervals(title: str, rows: Sequence[tuple[str, float, Sequence[float] | None, str]]) -> Markup:
    """Values with their intervals around zero; a row is (name, value, [low, high] or None, text at its end)."""
    reach = max((abs(v) for _, value, span, _ in rows for v in (value, *(span or ()))), default=0.0) or 1.0
    height, left, room = 30 * len(rows) + 30, 165, _WIDTH - 165 - 185

    def place(value: float) -> float:
        return left + (value / reach + 1) / 2 * room

    bottom = height - 24
    parts = [f'<line class="diagonal" x1="{place(0):.1f}" y1="0" x2="{place(0):.1f}" y2="{bottom}"/>']
    for tick in (-reach, 0.0, reach):
        at = f'x="{place(tick):.1f}" y="{height - 6}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{f"{tick:+.3f}" if tick else 0}</text>')
    for i, (name, value, span, text) in enumerate(rows):
        y = 16 + 30 * i
        parts.append(f'<text class="tick" x="{left - 10}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        if span:
            low, high = (place(v) for v in span)
            parts.append(f'<line class="series s0" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
        parts.append(f'<circle class="dot s0" cx="{place(value):.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="tick" x="{left + room + 12}" y="{y + 5}">{escape(text)}</text>')
    return _figure(title, parts, height, [])


def _figure(title: str, parts: list[str], height: int, names: list[str]) -> Markup:
    label = escape(title, quote=True)
    keys = "".join(
        f'<span class="key"><svg width="34" height="10" aria-hidden="true"><line class="series s{i % 6}" x1="1" y1="5" '
        f'x2="33" y2="5" stroke-dasharray="{_dash(i)}"/></svg>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    legend = f'<div class="legend">{keys}</div>' if len(names) > 1 else ""
    drawing = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Markup(f'<figure class="plot"><figcaption>{label}</figcaption>{drawing}{legend}</figure>')


def _dash(i: int) -> str:
    """Dash pattern of series `i`: colours repeat after six series, then with other dashes."""
    return DASHES[(i + i // 6) % len(DASHES)]


def _axes(x_low, y_low, x_ticks, y_ticks, x_label, y_label, place) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for tick in x_ticks:
        x, y = place(tick, y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{_number(tick)}</text>')
    for tick in y_ticks:
        x, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    half = (_TOP + _HEIGHT - _BOTTOM) / 2
    turn = f'transform="translate(14 {half}) rotate(-90)"'
    parts.append(f'<text class="label" text-anchor="middle" {turn}>{escape(y_label)}</text>')
    return parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low > 0 and low < 0.5 * high:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers in [low, high]."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in [low, high]; beyond two decades the powers alone."""
    factors = (1,) if high > 100 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for f in factors if low <= (tick := f * 10.0**power) <= high]


def _number(value: float) -> str:
    return f"{value:.6g}"
