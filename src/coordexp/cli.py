"""The `coordexp` command: CoordExp without Snakemake."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from coordexp.runtime.errors import ConfigError, CoordExpError, located
from coordexp.runtime.plugins import VARIABLE, load_plugins

DATA_OPTIONS = ("train_jsonl", "val_jsonl", "fusion_config", "categories")  # of `train`; fields of recipe.Custom


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code; a CoordExpError is printed and gives exit code 2."""
    plugins = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    plugins.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"Python file that registers plug-ins; may be repeated, in addition to ${VARIABLE}",
    )
    given, rest = plugins.parse_known_args(argv)
    try:
        _load(given.plugin)
        parser = argparse.ArgumentParser(prog="coordexp", description=__doc__, parents=[plugins])
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for command in (expand, train, merge, doctor, validate, evaluate, compare, detect, parse, summary):
            command(commands)
        args = parser.parse_args(rest)
        return args.run(args) or 0
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _load(files: list[Path]) -> None:
    """Import plug-ins, and list them in the environment for the processes that this one starts."""
    listed = [*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)), *(str(file.resolve()) for file in files)]
    if listed:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(listed))
    load_plugins()


def _subparser(commands, name: str, description: str, *examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=description.split(".")[0],
        description=description,
        epilog="\n  ".join(["example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_field(parser: argparse.ArgumentParser, struct: type[msgspec.Struct], name: str, **given: Any) -> None:
    """Add the option `--name` for a field of an options struct, with its description, choices and default."""
    field = next(field for field in msgspec.structs.fields(struct) if field.name == name)
    kind, *metas = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    settings: dict[str, Any] = {"help": next((meta.description for meta in metas if meta.description), None)}
    if kind is bool:
        settings["action"] = "store_true"
    elif get_origin(kind) is Literal:
        settings |= {"choices": get_args(kind), "default": field.default, "metavar": "|".join(get_args(kind))}
    else:
        settings |= {"type": kind, "default": field.default}
    parser.add_argument(f"--{name.replace('_', '-')}", **settings | given)


def expand(commands) -> None:
    """Command `expand`: add or check the coordinate tokens of a checkpoint."""
    from coordexp.modeling.embedding_init import Init

    parser = _subparser(
        commands,
        "expand",
        "Add the coordinate tokens to a checkpoint, or check them if --out is not given.\n\nThe check covers the ids, "
        "the encoding and decoding of an answer, the embedding table\nand the recorded tokenizer. Exit code 1 if a "
        "check fails or the checkpoint is unsuitable.",
        "coordexp expand models/Qwen3-VL-4B-Instruct --out models/qwen-coordexp",
        "coordexp expand models/qwen-coordexp",
    )
    parser.add_argument("base", type=Path, metavar="FOLDER", help="checkpoint with tokenizer.json and safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the new checkpoint; must not exist")
    choices = get_args(Init)
    parser.add_argument(
        "--init",
        default="numeric",
        choices=choices,
        metavar="|".join(choices),
        help="initialisation of the new embedding rows (default: numeric)",
    )

    def run(args: argparse.Namespace) -> int:
        from coordexp.modeling import vocab

        if args.out and args.out.exists():
            raise ConfigError(f"{args.out}: output folder exists\n  -> choose another --out")
        try:
            facts = vocab.expand(args.base, args.out, args.init) if args.out else vocab.check(args.base)
        except CoordExpError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        ids = f"<|coord_*|> is {facts['wildcard']}, <|coord_0|>..<|coord_999|> are {facts['start']}..{facts['end']}"
        rows, tokenizer = facts["vocab_size"], facts["tokenizer_sha256"][:12]
        print(f"{args.out or args.base}: {ids}, {rows} rows, tokenizer {tokenizer}")
        return 0

    parser.set_defaults(run=run)


def train(commands) -> None:
    """Command `train`: fine-tune a base with a recipe."""
    from coordexp.recipe import Custom

    parser = _subparser(
        commands,
        "train",
        "Fine-tune a base that has coordinate tokens with a recipe.",
        "coordexp train --config mine.yaml --base_config config/train/sft_coord_offset.yaml"
        " --model models/qwen-coordexp --train-jsonl data/train.coord.jsonl --val-jsonl data/val.coord.jsonl"
        " --out out/adapter",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="recipe, which may use `extends`")
    parser.add_argument("--base_config", type=Path, metavar="YAML", help="recipe whose values --config overrides")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="expanded base checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="result of the training; its parent folder also gets checkpoints/ and log.jsonl",
    )
    for name in DATA_OPTIONS:
        _add_field(parser, Custom, name, type=Path, metavar="FILE")
    processes, nodes = (int(os.environ.get(name, "1")) for name in ("NPROC_PER_NODE", "NNODES"))
    parser.add_argument(
        "--processes", type=int, default=processes, metavar="N", help="processes per machine ($NPROC_PER_NODE, or 1)"
    )
    parser.add_argument(
        "--nodes", type=int, default=nodes, metavar="N", help="machines ($NNODES, or 1); the same value on each of them"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads per process (default: 1)")

    def run(args: argparse.Namespace) -> None:
        from coordexp.recipe import parse_recipe
        from coordexp.runtime import config_io
        from coordexp.runtime.locks import sole_writer
        from coordexp.training import train as training
        from coordexp.training.launch import DistributedConfig

        training.refuse_foreign_outputs(args.out, args.out.parent / "log.jsonl")
        base = config_io.read_extended(args.base_config) if args.base_config else {}
        files = {name: str(getattr(args, name).resolve()) for name in DATA_OPTIONS if getattr(args, name)}
        values = config_io.merge(base, config_io.read_extended(args.config))
        recipe = parse_recipe(config_io.merge(values, {"custom": files}), args.config)
        if not (recipe.custom.train_jsonl or recipe.custom.fusion_config):
            fix = "give --train-jsonl or --fusion-config, or set custom.train_jsonl in the recipe"
            raise ConfigError(f"no data to train on\n  -> {fix}")
        distributed = DistributedConfig(args.processes, args.nodes, args.threads * args.processes)
        rank = os.environ.get("NODE_RANK", "0")  # the machines of one run share the folder
        with sole_writer(args.out.with_name("checkpoints" if rank == "0" else f"checkpoints-{rank}")):
            manifest = training.train(recipe, args.model, args.out, args.out.parent / "log.jsonl", distributed)
        if manifest is not None:
            print(f"{args.out}: {manifest['kind']} of step {manifest['step']}")

    parser.set_defaults(run=run)


def merge(commands) -> None:
    """Command `merge`: merge an adapter named by environment variables."""
    parser = _subparser(
        commands,
        "merge",
        "Merge LoRA, DoRA and coordinate offsets into a plain checkpoint.\n\nThe environment sets ADAPTERS (the result "
        "of a training, or a folder or glob of checkpoints) and\nOUTPUT_DIR, and optionally BASE, BEST=1, "
        "ALLOW_OVERWRITE=1 and GPU_DEVICES.",
        "ADAPTERS=out/adapter OUTPUT_DIR=out/merged ALLOW_OVERWRITE=1 coordexp merge",
    )
    parser.add_argument("--best", action="store_true", help="merge the best checkpoint, not the newest (as BEST=1)")

    def run(args: argparse.Namespace) -> int:
        from coordexp.modeling.merge import merge_from_env

        return merge_from_env({**os.environ, "BEST": "1"} if args.best else None)

    parser.set_defaults(run=run)


def doctor(commands) -> None:
    """Command `doctor`: show one record as the model is trained on it."""
    parser = _subparser(
        commands,
        "doctor",
        "Show one record as the model is trained on it.",
        "coordexp doctor results/shapes_9/data/train.coord.jsonl --index 3 --model results/models/tiny-coordexp",
    )
    parser.add_argument("file", type=Path, metavar="JSONL", help="records in pixel or token space")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="index of the record, from 0 (default: 0)")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="expanded base checkpoint")
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe that sets the prompt and answer style")
    parser.add_argument("--out", type=Path, metavar="IMAGE", help="draw the boxes decoded from the tokens to this file")
    parser.add_argument("--epoch", type=int, metavar="N", help="apply the recipe's augmentation of this epoch")

    def run(args: argparse.Namespace) -> None:
        from coordexp.doctor import examine
        from coordexp.recipe import Custom, load_recipe

        custom = load_recipe(args.config).custom if args.config else Custom()
        report = examine(args.file, args.index, args.model, custom, args.out, args.epoch)
        print(f"prompt:\n{report['prompt']}\n\nanswer:\n{report['answer']}\n\ntokens (* supervised):")
        for (number, text, supervised), group in itertools.groupby(report["tokens"]):
            count = len(list(group))
            print(f"{'*' if supervised else ''}{text!r}:{number}" + (f" x{count}" if count > 1 else ""), end=" ")
        print("\n\nboxes decoded from the tokens, in pixels, and their IoU with the unquantised boxes:")
        for box in report["boxes"]:
            print(f"  {box['desc']}: {box['pixel']}  IoU {box['iou']}")
        if args.out:
            print(f"image: {args.out}")

    parser.set_defaults(run=run)


def validate(commands) -> None:
    """Command `validate`: check a file of records."""
    parser = _subparser(
        commands,
        "validate",
        "Check every line of a file of records against all rules of the record format.",
        "coordexp validate results/lvis_768/data/train.jsonl --open-images",
    )
    parser.add_argument("file", type=Path, metavar="JSONL", help="records in any coordinate space")
    parser.add_argument("--open-images", action="store_true", help="also decode every image")

    def run(args: argparse.Namespace) -> int:
        from coordexp.datasets import validate as validation

        problems = validation.validate(args.file, open_images=args.open_images)
        for problem in problems:
            print(f"{args.file}: {problem}")
        print(f"{args.file}: {len(problems)} problem(s)")
        return 1 if problems else 0

    parser.set_defaults(run=run)


def evaluate(commands) -> None:
    """Command `evaluate`: score a file of predictions."""
    from coordexp.evaluation.external_predictions import PREDICTION_FORMATS
    from coordexp.evaluation.options import EvaluateOptions

    parser = _subparser(
        commands,
        "evaluate",
        "Score predictions against COCO or LVIS annotations.",
        "coordexp evaluate --gt instances_val2017.json --pred predictions.jsonl --out eval.json",
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="JSON", help="annotations in COCO or LVIS format")
    parser.add_argument("--pred", type=Path, required=True, metavar="FILE", help="predictions, in a format of --format")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="file for the results")
    parser.add_argument(
        "--format",
        choices=PREDICTION_FORMATS,
        metavar="FORMAT",
        help=f"{', '.join(PREDICTION_FORMATS)} (docs/evaluation.md); default: coco for a JSON list, otherwise coordexp",
    )
    _add_field(parser, EvaluateOptions, "subset")
    _add_field(parser, EvaluateOptions, "on_bad")
    parser.add_argument(
        "--records",
        type=Path,
        metavar="JSONL",
        help="pixel-space records of the images to evaluate; other annotated images are ignored",
    )

    def run(args: argparse.Namespace) -> None:
        from coordexp import evaluation
        from coordexp.evaluation.external_predictions import default_format
        from coordexp.reporting import headline, losses

        options = EvaluateOptions(subset=args.subset, on_bad=args.on_bad)
        names = {"dataset": args.gt.stem, "split": "val", "format": args.format or default_format(args.pred)}
        evaluation.evaluate(args.pred, args.gt, options, **names, out=args.out, records=args.records)
        print("\n".join([headline(args.out), *losses(args.out)]))
        print(f"wrote {args.out}")

    parser.set_defaults(run=run)


def compare(commands) -> None:
    """Command `compare`: compare evaluations of the same images."""
    parser = _subparser(
        commands,
        "compare",
        "Compare runs on the same images, with paired confidence intervals.",
        "coordexp compare results/lvis_768/eval.json results/lvis_1024/eval.json --out compare.json",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="EVAL_JSON", help="two or more; the first is the baseline"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="JSON", help="file for the results; a page is written next to it"
    )

    def run(args: argparse.Namespace) -> None:
        from coordexp.evaluation.compare import compare_evaluated
        from coordexp.reporting import write_comparison

        compare_evaluated(args.runs, out=args.out)
        write_comparison(args.out.with_suffix(".html"), compare_json=args.out)
        print(f"wrote {args.out} and {args.out.with_suffix('.html')}")

    parser.set_defaults(run=run)


def detect(commands) -> None:
    """Command `detect`: detect objects in image files."""
    parser = _subparser(
        commands,
        "detect",
        "Detect objects in images with a merged checkpoint.",
        "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="merged checkpoint")
    parser.add_argument("--categories", metavar="NAME,...", help="categories to detect (default: every object)")
    parser.add_argument(
        "--max-blocks", type=int, metavar="N", help="most tiles per image (default: as in the training of the model)"
    )
    parser.add_argument("--polygons", action="store_true", help="allow polygons in answers (data.geometry: poly)")
    parser.add_argument(
        "--calibration", type=Path, metavar="JSON", help="calibration.json of the run, to output probabilities"
    )
    parser.add_argument("--out", type=Path, metavar="IMAGE", help="draw the detections of a single image to this file")

    def run(args: argparse.Namespace) -> None:
        from coordexp.inference import detect as detection

        if args.out and len(args.images) > 1:
            fix = "run the command once per image"
            raise ConfigError(f"--out needs a single image, found {len(args.images)}\n  -> {fix}")
        categories = None if args.categories is None else _category_names(args.categories)
        options = {"max_blocks": args.max_blocks, "calibration": args.calibration, "polygons": args.polygons}
        for result in detection.detect(args.model, args.images, categories, **options):
            _print_detections(result, args.out)

    parser.set_defaults(run=run)


def _category_names(text: str) -> list[str]:
    """Comma-separated names without surrounding space; ConfigError for an empty name."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        fix = "separate the names by single commas, or omit --categories to detect every object"
        raise ConfigError(located("--categories contains an empty name", found=text, fix=fix))
    return list(dict.fromkeys(names))


def _print_detections(result: Any, out: Path | None) -> None:
    """Print the detections of one image as a line of JSON, and draw them if `out` is given."""
    from coordexp.datasets.images import load_image
    from coordexp.inference.draw import draw

    rows = []
    for detection, box, poly in zip(result.detections, result.boxes(), result.polygons(), strict=True):
        outline = {"poly": [round(v, 2) for v in poly]} if poly else {}
        bbox = [round(v, 2) for v in box]
        rows.append({"desc": detection.desc, "bbox": bbox, **outline, "score": detection.score})
    print(msgspec.json.encode({"image": result.path, "detections": rows}).decode())
    if out:
        size = result.width, result.height
        draw(load_image(result.path, size, size), result.detections).save(out)


def parse(commands) -> None:
    """Command `parse`: import the responses of an inference server."""
    from coordexp.recipe import Custom

    parser = _subparser(
        commands,
        "parse",
        "Convert the responses of a vLLM, SGLang or transformers server to predictions.",
        "coordexp parse responses.jsonl --records results/lvis_768/data/val.jsonl --out predictions.jsonl",
    )
    parser.add_argument("responses", type=Path, metavar="JSONL", help="one response per line (docs/serving.md)")
    parser.add_argument(
        "--records", type=Path, required=True, metavar="JSONL", help="pixel-space records of the requests"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="file for the predictions")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="merged checkpoint whose codec and notation of coordinates are used",
    )
    _add_field(parser, Custom, "emit_norm", default=None)

    def run(args: argparse.Namespace) -> None:
        from coordexp.inference.import_responses import import_responses

        options = {"emit_norm": args.emit_norm, "model_dir": args.model}
        for reason, count in import_responses(args.responses, args.records, args.out, **options).items():
            print(f"{reason}: {count}")

    parser.set_defaults(run=run)


def summary(commands) -> None:
    """Command `summary`: print the headline metrics of a run."""
    parser = _subparser(
        commands, "summary", "Print the headline metrics of a run.", "coordexp summary results/shapes_9"
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run with an eval.json")

    def run(args: argparse.Namespace) -> None:
        from coordexp.reporting import headline, losses

        print("\n".join([headline(args.run_dir / "eval.json"), *losses(args.run_dir / "eval.json")]))
        report = (args.run_dir / "report.html").resolve()
        if report.is_file():
            print(f"report: {report}")

    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
