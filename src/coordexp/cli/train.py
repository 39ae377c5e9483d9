"""Command `train`: fine-tune an expanded base checkpoint according to a recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from coordexp.cli.arguments import Commands, add_field, subparser
from coordexp.runtime.errors import ConfigError

DATA_OPTIONS = {  # by field of recipe.Custom
    "train_jsonl": "--train-jsonl",
    "val_jsonl": "--val-jsonl",
    "fusion_config": "--fusion-config",
    "categories": "--categories-file",  # `--categories` of other commands is a list of names
}
RENDEZVOUS = (  # variables of torchrun, by which machines that are started by hand find each other
    ("NODE_RANK", int, "number of this machine, from 0"),
    ("MASTER_ADDR", str, "address of the machine with number 0"),
    ("MASTER_PORT", int, "port on that machine"),
)


def add(commands: Commands) -> None:
    """Add the command and its options."""
    from coordexp.recipe import Custom

    parser = subparser(
        commands,
        "train",
        "Fine-tune an expanded base checkpoint according to a recipe.",
        "coordexp train --config mine.yaml --base-config config/train/sft_coord_offset.yaml"
        " --model models/qwen-coordexp --train-jsonl data/train.coord.jsonl --val-jsonl data/val.coord.jsonl"
        " --out out/adapter",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="recipe, which may use `extends`")
    parser.add_argument(
        "--base-config", "--base_config", type=Path, metavar="YAML", help="recipe whose values --config overrides"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="expanded base checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="result of training; checkpoints/ and log.jsonl are written next to it",
    )
    for name, option in DATA_OPTIONS.items():
        add_field(parser, Custom, name, option, type=Path, metavar="FILE")
    processes, nodes = (int(os.environ.get(name, "1")) for name in ("NPROC_PER_NODE", "NNODES"))
    parser.add_argument(
        "--processes", type=int, default=processes, metavar="N", help="processes per machine ($NPROC_PER_NODE, or 1)"
    )
    parser.add_argument(
        "--nodes", type=int, default=nodes, metavar="N", help="machines ($NNODES, or 1); the same on every machine"
    )
    for name, kind, meaning in RENDEZVOUS:
        option = f"--{name.lower().replace('_', '-')}"
        parser.add_argument(option, type=kind, metavar="N" if kind is int else "HOST", help=f"{meaning} (${name})")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads per process (default: 1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, or continue an unfinished training run in the same folder."""
    from coordexp.recipe import parse_recipe
    from coordexp.runtime import config_io
    from coordexp.runtime.locks import sole_writer
    from coordexp.training import train as training
    from coordexp.training.launch import DistributedConfig

    for name, *_ in RENDEZVOUS:
        if (value := getattr(args, name.lower())) is not None:
            os.environ[name] = str(value)
    training.refuse_foreign_outputs(args.out, args.out.parent / "log.jsonl")
    base = config_io.read_extended(args.base_config) if args.base_config else {}
    files = {name: str(getattr(args, name).resolve()) for name in DATA_OPTIONS if getattr(args, name)}
    values = config_io.merge(base, config_io.read_extended(args.config))
    recipe = parse_recipe(config_io.merge(values, {"custom": files}), args.config)
    if not (recipe.custom.train_jsonl or recipe.custom.fusion_config):
        fix = "pass --train-jsonl or --fusion-config, or set custom.train_jsonl in the recipe"
        raise ConfigError(f"no data to train on\n  -> {fix}")
    distributed = DistributedConfig(args.processes, args.nodes, args.threads * args.processes)
    rank = os.environ.get("NODE_RANK", "0")  # the machines of one run share the folder
    with sole_writer(args.out.with_name("checkpoints" if rank == "0" else f"checkpoints-{rank}")):
        manifest = training.train(recipe, args.model, args.out, args.out.parent / "log.jsonl", distributed)
    if manifest is not None:
        print(f"{args.out}: {manifest['kind']} of step {manifest['step']}")
