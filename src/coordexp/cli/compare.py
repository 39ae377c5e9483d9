"""Command `compare`: compare evaluations of the same images."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.output_guard import check_output_file, is_page, is_result


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "compare",
        "Compare runs on the same images, with paired confidence intervals.",
        "coordexp compare results/lvis_768/eval.json results/lvis_1024/eval.json --out compare.json",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="EVAL_JSON", help="two or more; the first is the baseline"
    )
    parser.add_argument(
        "--gt", type=Path, metavar="JSON", help="annotations, if they are not where the evaluations found them"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="JSON",
        help="file for the results; an HTML page is written next to it",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare the runs and write the results and their page."""
    from coordexp.evaluation.compare import compare_evaluated
    from coordexp.reporting.comparison import write_comparison

    if args.out.suffix == ".html":
        problem, fix = "the HTML page of the comparison would replace the results", "choose a name with .json"
        raise ConfigError(located(problem, field="--out", found=str(args.out), fix=fix))
    check_output_file(args.out, is_result, *args.runs)
    check_output_file(args.out.with_suffix(".html"), is_page, *args.runs)
    compare_evaluated(args.runs, annotations=args.gt, out=args.out)
    write_comparison(args.out.with_suffix(".html"), compare_json=args.out)
    print(f"wrote {args.out} and {args.out.with_suffix('.html')}")
