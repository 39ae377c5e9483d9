"""Command `row`: print the metrics of a run as a row of a published table."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.evaluation.table_protocols import TABLE_PROTOCOLS

    parser = subparser(
        commands,
        "row",
        "Print the metrics of a run as a row of a published table, with the reasons if they are not comparable.",
        "coordexp row results/coco_1024 --protocol rex_omni",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run with an eval.json, or an eval.json")
    parser.add_argument(
        "--protocol",
        choices=TABLE_PROTOCOLS,
        required=True,
        metavar="PROTOCOL",
        help=f"{', '.join(TABLE_PROTOCOLS)} (docs/evaluation.md)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the published rows and that of the run as a Markdown table, in percent."""
    from coordexp.evaluation.published_figures import PUBLISHED_FIGURES
    from coordexp.evaluation.results import load_eval
    from coordexp.evaluation.table_protocols import TABLE_PROTOCOLS, table_row

    file = args.run_dir if args.run_dir.is_file() else args.run_dir / "eval.json"
    protocol = TABLE_PROTOCOLS[args.protocol]
    row = table_row(load_eval(file), protocol)
    name = file.resolve().parent.name if file.name == "eval.json" else file.stem
    published = [(f.model, f.values) for f in PUBLISHED_FIGURES if f.protocol == args.protocol]
    columns = list(protocol.columns)
    print(f"| {protocol.title} | {' | '.join(columns)} |")
    print(f"|---{'|---' * len(columns)}|")
    for model, values in (*published, (name, row.values)):
        cells = ("-" if values.get(column) is None else f"{values[column]:.1f}" for column in columns)
        print(f"| {model} | {' | '.join(cells)} |")
    for reason in row.reasons:
        print(f"{name} is not comparable: {reason}")
