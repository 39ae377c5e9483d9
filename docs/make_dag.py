"""Draw docs/dag.svg from `snakemake --rulegraph`: the rules of a run, and which needs the files of which."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURE = REPOSITORY / "docs" / "dag.svg"
TARGETS = ("results/shapes_9/eval.json", "results/shapes_9/report.html")

STEP, WIDTH, HEIGHT = 116, 104, 34  # pixels: from column to column, and of a box
ROW, BELOW = 130, 232  # middles of the main chain and of the row under it
# One fill a stage, after the file in rules/ that holds the rule: readable under dark text on light and dark pages.
FILLS = {"data": "#9ecae9", "model": "#ffd08a", "train": "#f5a3a3", "eval": "#a8dba8", "report": "#d3bdea"}

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1b1b1b; text-anchor: middle; }
path { fill: none; stroke: #8a8a8a; stroke-width: 1.6; }
path.far { stroke-width: 1; stroke-dasharray: 4 3; }
"""

Edges = set[tuple[str, str]]


def rulegraph(folder: Path) -> Edges:
    """(needed, needing) rules of the demo, as Snakemake sees them from an empty `folder`."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--directory", str(folder)]
    command += ["--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", str(REPOSITORY / "config/config.yaml")]
    dot = subprocess.run([*command, "--", *TARGETS], check=True, capture_output=True, text=True).stdout
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, flags=re.MULTILINE))
    return {(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, flags=re.MULTILINE)}


def columns(edges: Edges) -> dict[str, int]:
    """The column of each rule: as far right as the rules that need it allow."""
    needing: dict[str, set[str]] = {name: {b for a, b in edges if a == name} for edge in edges for name in edge}

    @cache
    def to_the_end(name: str) -> int:
        return max((1 + to_the_end(b) for b in needing[name]), default=0)

    longest = max(map(to_the_end, needing))
    return {name: longest - to_the_end(name) for name in needing}


def places(edges: Edges) -> dict[str, tuple[int, int]]:
    """Middle of each rule's box: the longest chain in one row, the others under it."""
    column = columns(edges)
    chain = [min(name for name, at in column.items() if at == 0)]
    while following := sorted(b for a, b in edges if a == chain[-1] and column[b] == column[a] + 1):
        chain.append(following[0])
    return {name: (STEP // 2 + at * STEP, ROW if name in chain else BELOW) for name, at in column.items()}


def path(start: tuple[int, int], end: tuple[int, int]) -> str:
    """An arrow: straight to a neighbour, an arc over the boxes in between."""
    (x1, y1), (x2, y2) = start, end
    half = WIDTH // 2
    if y1 == y2 and x2 - x1 == STEP:
        return f'<path d="M{x1 + half} {y1}H{x2 - half - 2}" marker-end="url(#tip)"/>'
    if y1 == y2:
        lift = 14 + 11 * (x2 - x1) // STEP
        top = y1 - HEIGHT // 2
        curve = f"M{x1} {top}C{x1 + 24} {top - lift} {x2 - 24} {top - lift} {x2} {top - 3}"
        return f'<path class="far" d="{curve}" marker-end="url(#tip)"/>'
    foot = y2 + HEIGHT // 2
    return f'<path d="M{x1 + half} {y1}C{x2} {y1} {x2} {y1} {x2} {foot + 3}" marker-end="url(#tip)"/>'


def stage(rule: str) -> str:
    """Name of the file in rules/ that holds the rule."""
    files = (REPOSITORY / "rules").glob("*.smk")
    return next(file.stem for file in files if re.search(rf"^rule {rule}:", file.read_text(), flags=re.MULTILINE))


def svg(edges: Edges) -> str:
    """The image; the same graph gives the same bytes."""
    at = places(edges)
    width = max(x for x, _ in at.values()) + STEP // 2
    boxes = [
        f'<rect x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}" rx="7"'
        f' fill="{FILLS[stage(name)]}"/><text x="{x}" y="{y + 5}">{name}</text>'
        for name, (x, y) in sorted(at.items())
    ]
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill: #8a8a8a; stroke: none"/></marker>'
    )
    arrows = [path(at[a], at[b]) for a, b in sorted(edges)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {BELOW + HEIGHT}" role="img">'
    lines = [head, "<title>Rules of a run</title>", f"<style>{STYLE}</style>", f"<defs>{tip}</defs>", *arrows, *boxes]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        FIGURE.write_text(svg(rulegraph(Path(empty))), encoding="utf-8")
    print(f"{FIGURE}: written")
