"""Command `init`: look at a folder of images and annotations, and propose a configuration for it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordexp.cli.arguments import Commands, subparser
from coordexp.runtime.errors import ConfigError, located

if TYPE_CHECKING:
    from coordexp.datasets.inspect_folder import Choice, SplitFacts

LISTED_CATEGORIES = 20


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "init",
        "Propose a configuration for a folder of images and annotations.\n\nPrints the format, the splits, counts by "
        "category, box sizes and possible problems, and writes a\nfile for `snakemake --configfile` with the "
        "dataset, an image budget (max_blocks), a recipe and the runs.",
        "coordexp init /data/parts --dry-run",
        "coordexp init /data/parts --name parts --out parts.yaml",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the dataset; it is not modified")
    parser.add_argument("--name", help="name of the dataset (default: the folder name)")
    parser.add_argument("--out", type=Path, metavar="YAML", help="file to write; must not exist (default: NAME.yaml)")
    parser.add_argument("--format", metavar="FORMAT", help="format, if several formats can read the folder")
    parser.add_argument(
        "--choice", type=int, metavar="N", help="number of the interpretation to use, if there are several"
    )
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        default="Qwen3-VL-4B-Instruct",
        help="base from `models` (default: Qwen3-VL-4B-Instruct; use tiny on a CPU)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads for reading images"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the configuration instead of writing it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Describe the folder, and write or print the proposal."""
    from coordexp.config import propose
    from coordexp.datasets.inspect_folder import choices, inspect, possible_problems

    name = args.name or _name_of(args.folder)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(located("invalid name", field="--name", expected="letters, digits, _ and -", found=name))
    out = args.out or Path(f"{name}.yaml")
    if out.exists() and not args.dry_run:
        raise ConfigError(located("the file already exists", file=out, fix="choose another --out, or delete it"))
    choice = _chosen(choices(args.folder, args.format), args)
    entry = {"format": choice.format, "root": str(args.folder.resolve()), **choice.proposal.options}
    print(f"{args.folder}: {choice.format} ({choice.proposal.evidence})\n")
    splits = inspect(name, entry, args.workers)
    print("\n".join(_description(splits)))
    problems = possible_problems(splits)
    print(
        "\n".join(
            ["", "possible problems:", *(f"  {line}" for line in problems)] if problems else ["", "no problems found"]
        )
    )
    if not any(len(facts.sizes) for facts in splits):
        raise ConfigError(located("no split can be read", file=args.folder, fix="correct the problems listed above"))
    found = propose.budget(splits, tiny=args.base_model == "tiny")
    text = propose.as_yaml(propose.configuration(name, entry, splits, args.base_model))
    print(f"\nbudget: {name}_{found.max_blocks}: {found.reason}\n")
    if args.dry_run:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(f"# Proposed by coordexp init {args.folder}\n{text}")
        print(f"wrote {out}")
    targets = " ".join(propose.targets(name, splits, found.max_blocks))
    print(f"next: snakemake {targets} --configfile {out} --cores all")


def _name_of(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.resolve().name).strip("_") or "mine"


def _chosen(found: list[Choice], args: argparse.Namespace) -> Choice:
    """The only choice, or the one that the user names; ConfigError that lists them otherwise."""
    from coordexp.datasets.formats import FORMATS

    listed = "\n".join(f"  --choice {n}: {c.format}, {c.proposal.evidence}" for n, c in enumerate(found, 1))
    if args.choice is not None:
        if 1 <= args.choice <= len(found):
            return found[args.choice - 1]
        expected = f"1 to {len(found)}"
        raise ConfigError(
            located("no such choice", field="--choice", expected=expected, found=args.choice) + f"\n{listed}"
        )
    if not found:
        names = [args.format] if args.format else FORMATS.names()
        fix = "pass the folder that holds both annotations and images, or write the dataset's entry (docs/data.md)"
        raise ConfigError(located("no annotations in a supported format", file=args.folder, expected=names, fix=fix))
    if len(found) > 1:
        fix = f"choose one:\n{listed}"
        raise ConfigError(located(f"the folder can be read in {len(found)} ways", file=args.folder, fix=fix))
    return found[0]


def _description(splits: list[SplitFacts]) -> list[str]:
    """Tables of the splits and of their categories."""
    import numpy as np

    rows: list[list[Any]] = [
        ["split", "images", "without boxes", "boxes", "max per image", "box sizes (px)", "image sizes (px)"]
    ]
    for facts in splits:
        if facts.problem:
            continue
        boxes = (
            [f"{value:.0f}" for value in np.quantile(facts.box_sizes, (0.05, 0.5, 0.95))]
            if len(facts.box_sizes)
            else []
        )
        sizes = [f"{w}x{h}" for w, h in sorted({*map(tuple, facts.sizes.tolist())}, key=lambda s: s[0] * s[1])]
        shown = sizes if len(sizes) < 3 else [sizes[0], sizes[-1]]
        empty, most = int((facts.boxes_of == 0).sum()), int(facts.boxes_of.max(initial=0))
        rows.append(
            [facts.split, len(facts.sizes), empty, len(facts.box_sizes), most, " / ".join(boxes), " to ".join(shown)]
        )
    names = sorted({name for facts in splits for name in facts.categories}, key=lambda n: -_total(splits, n))
    table = [["category", *(facts.split for facts in splits)]]
    table += [[name, *(facts.categories.get(name, 0) for facts in splits)] for name in names[:LISTED_CATEGORIES]]
    more = [f"... and {len(names) - LISTED_CATEGORIES:,} more categories"] if len(names) > LISTED_CATEGORIES else []
    return [
        *_aligned(rows),
        "box sizes: square root of the area; 5th, 50th and 95th percentile",
        "",
        *_aligned(table),
        *more,
    ]


def _total(splits: list[SplitFacts], name: str) -> int:
    return sum(facts.categories.get(name, 0) for facts in splits)


def _aligned(rows: list[list[Any]]) -> list[str]:
    """Rows of a table as text, with numbers right-aligned."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if isinstance(cell, int) else text.ljust(width)
            for cell, text, width in zip(row, line, widths, strict=True)
        ).rstrip()
        for row, line in zip(rows, texts, strict=True)
    ]
