"""The `coordexp` command: the library without Snakemake."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

from coordexp.runtime.errors import ConfigError, CoordExpError

# Options of `train` that stand for a key of the recipe's `custom` section.
DATA_OPTIONS = ("train_jsonl", "val_jsonl", "fusion_config", "categories")


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an expected error ends in its own words and exit code 2."""
    parser = argparse.ArgumentParser(prog="coordexp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for register in (_expand, _train, _merge, _doctor, _validate, _evaluate, _compare, _detect, _parse, _summary):
        register(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _command(commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _expand(commands) -> None:
    example = (
        "coordexp expand models/Qwen3-VL-4B-Instruct --out models/qwen-coordexp\n  coordexp expand models/qwen-coordexp"
    )
    sub = _command(
        commands,
        "expand",
        "Add the coordinate tokens to a checkpoint; without --out check one that has them: ids, contiguity, one id a "
        "token, round trip, table, recorded tokenizer. Exit code 1 when a check fails or the checkpoint is unusable.",
        example,
    )
    sub.add_argument("base", type=Path, metavar="FOLDER", help="checkpoint with tokenizer.json and safetensors")
    sub.add_argument("--out", type=Path, help="folder of the expanded checkpoint; must not be there")
    sub.add_argument("--init", default="numeric", choices=["numeric", "mean"], help="how the new rows start")
    sub.set_defaults(run=_run_expand)


def _run_expand(args: argparse.Namespace) -> int:
    from coordexp.modeling.vocab import check, expand

    if args.out and args.out.exists():
        raise ConfigError(f"{args.out}: output folder exists\n  -> choose another --out")
    try:
        facts = expand(args.base, args.out, args.init) if args.out else check(args.base)
    except CoordExpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ids = f"<|coord_*|> is {facts['wildcard']}, <|coord_0|>..<|coord_999|> are {facts['start']}..{facts['end']}"
    print(f"{args.out or args.base}: {ids}, {facts['vocab_size']} rows, tokenizer {facts['tokenizer_sha256'][:12]}")
    return 0


def _train(commands) -> None:
    example = (
        "coordexp train --config mine.yaml --base_config config/train/sft_coord_offset.yaml"
        " --model models/qwen-coordexp --train-jsonl data/train.coord.jsonl --val-jsonl data/val.coord.jsonl"
        " --out out/adapter"
    )
    sub = _command(commands, "train", "Fine-tune a base with coordinate tokens by a recipe.", example)
    sub.add_argument("--config", type=Path, required=True, help="recipe (YAML with `extends`)")
    sub.add_argument("--base_config", type=Path, help="recipe below it; --config wins")
    sub.add_argument("--model", type=Path, required=True, help="folder of the expanded base")
    sub.add_argument("--out", type=Path, required=True, help="folder of the result; checkpoints and logs lie beside it")
    for name in DATA_OPTIONS:
        sub.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"custom.{name} of the recipe")
    environ = os.environ.get
    each, machines = int(environ("NPROC_PER_NODE", "1")), int(environ("NNODES", "1"))
    sub.add_argument("--processes", type=int, default=each, help="processes on each machine; $NPROC_PER_NODE or 1")
    sub.add_argument("--nodes", type=int, default=machines, help="machines; $NNODES or 1; alike on each of them")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    sub.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> None:
    from coordexp.recipe import parse_recipe
    from coordexp.runtime.config_io import merge, read_extended
    from coordexp.runtime.locks import sole_writer
    from coordexp.training.launch import DistributedConfig
    from coordexp.training.train import train

    below = read_extended(args.base_config) if args.base_config else {}
    given = {name: str(getattr(args, name).resolve()) for name in DATA_OPTIONS if getattr(args, name)}
    recipe = parse_recipe(merge(merge(below, read_extended(args.config)), {"custom": given}), args.config)
    if not (recipe.custom.train_jsonl or recipe.custom.fusion_config):
        raise ConfigError("no data to train on\n  -> give --train-jsonl or --fusion-config, or name it in the recipe")
    distributed = DistributedConfig(args.processes, args.nodes, args.threads * args.processes)
    rank = os.environ.get("NODE_RANK", "0")  # machines of one run share the folder
    with sole_writer(args.out.with_name("checkpoints" if rank == "0" else f"checkpoints-{rank}")):
        manifest = train(recipe, args.model, args.out, args.out.parent / "log.jsonl", distributed)
    if manifest is not None:
        print(f"{args.out}: {manifest['kind']} of step {manifest['step']}")


def _merge(commands) -> None:
    example = "ADAPTERS=out/adapter OUTPUT_DIR=out/merged ALLOW_OVERWRITE=1 coordexp merge"
    sub = _command(
        commands,
        "merge",
        "Merge LoRA, DoRA and coordinate offsets into a plain checkpoint. Everything comes from the environment: "
        "ADAPTERS (result of training; or a folder or glob of checkpoints), OUTPUT_DIR, and as needed BASE, BEST=1, "
        "ALLOW_OVERWRITE=1, GPU_DEVICES.",
        example,
    )
    sub.add_argument("--best", action="store_true", help="the checkpoint that training found best (as BEST=1)")
    sub.set_defaults(run=_run_merge)


def _run_merge(args: argparse.Namespace) -> int:
    from coordexp.modeling.merge import merge_from_env

    return merge_from_env({**os.environ, "BEST": "1"} if args.best else None)


def _validate(commands) -> None:
    example = "coordexp validate results/lvis_768/data/train.jsonl --open-images"
    sub = _command(commands, "validate", "Check every rule of the record on every line of a file.", example)
    sub.add_argument("file", type=Path, help="JSONL of records")
    sub.add_argument("--open-images", action="store_true", help="also decode every image")
    sub.set_defaults(run=_run_validate)


def _run_validate(args: argparse.Namespace) -> int:
    from coordexp.datasets.validate import validate

    problems = validate(args.file, open_images=args.open_images)
    for problem in problems:
        print(f"{args.file}: {problem}")
    print(f"{args.file}: {len(problems)} problem(s)")
    return 1 if problems else 0


def _doctor(commands) -> None:
    example = "coordexp doctor results/shapes_9/data/train.coord.jsonl --index 3 --model results/models/tiny-coordexp"
    sub = _command(commands, "doctor", "Show one record as training sees it.", example)
    sub.add_argument("file", type=Path, help="JSONL of records in pixel or token space")
    sub.add_argument("--index", type=int, default=0, help="which record, from 0")
    sub.add_argument("--model", type=Path, required=True, help="folder of the expanded base")
    sub.add_argument("--config", type=Path, help="recipe, for its prompt and answer style")
    sub.add_argument("--out", type=Path, help="image with the boxes read back from the tokens")
    sub.add_argument("--epoch", type=int, help="show the record as the recipe's augmentation changes it in this epoch")
    sub.set_defaults(run=_run_doctor)


def _run_doctor(args: argparse.Namespace) -> None:
    from coordexp.doctor import examine
    from coordexp.recipe import Custom, load_recipe

    custom = load_recipe(args.config).custom if args.config else Custom()
    found = examine(args.file, args.index, args.model, custom, args.out, args.epoch)
    print(f"prompt:\n{found['prompt']}\n\nanswer:\n{found['answer']}\n\ntokens (* supervised):")
    for (number, text, supervised), run in itertools.groupby(found["tokens"]):
        times = len(list(run))
        print(f"{'*' if supervised else ''}{text!r}:{number}" + (f" x{times}" if times > 1 else ""), end=" ")
    print()
    print("\nboxes read back from the tokens, in pixels, with their IoU with the unrounded ones:")
    for box in found["boxes"]:
        print(f"  {box['desc']}: {box['pixel']}  IoU {box['iou']}")
    if args.out:
        print(f"image: {args.out}")


def _evaluate(commands) -> None:
    example = "coordexp evaluate --gt instances_val2017.json --pred predictions.jsonl --out eval.json"
    sub = _command(commands, "evaluate", "Score predictions against COCO or LVIS annotations.", example)
    sub.add_argument("--gt", type=Path, required=True, help="annotation file in COCO or LVIS format")
    sub.add_argument("--pred", type=Path, required=True, help="predictions.jsonl, or results in COCO's JSON")
    sub.add_argument("--out", type=Path, required=True, help="where the numbers go")
    format = "format of the predictions (docs/evaluation.md); default: coco for a JSON list, else coordexp"
    sub.add_argument("--format", help=format)
    sub.add_argument("--subset", action="store_true", help="score only the images that were predicted")
    records = "pixel-space records of the images that were asked about: annotated images without one are not judged"
    sub.add_argument("--records", type=Path, help=records)
    on_bad = "faulty annotations stop, or are left out and counted, as data.on_bad does; default: error"
    sub.add_argument("--on-bad", choices=["error", "skip"], default="error", help=on_bad)
    sub.set_defaults(run=_run_evaluate)


def _run_evaluate(args: argparse.Namespace) -> None:
    from coordexp.evaluation import EvaluateOptions, evaluate
    from coordexp.evaluation.external_predictions import default_format

    options = EvaluateOptions(subset=args.subset, on_bad=args.on_bad)
    format = args.format or default_format(args.pred)
    names = {"dataset": args.gt.stem, "split": "val", "format": format}
    evaluate(args.pred, args.gt, options, **names, out=args.out, records=args.records)
    print(f"{args.out}: written")


def _compare(commands) -> None:
    example = "coordexp compare results/lvis_768/eval.json results/lvis_1024/eval.json --out compare.json"
    sub = _command(commands, "compare", "Compare runs on the same images, with paired intervals.", example)
    sub.add_argument("runs", nargs="+", type=Path, metavar="EVAL_JSON", help="two or more; the first is the base")
    sub.add_argument("--out", type=Path, required=True, help="where the numbers go; a page of the same name beside it")
    sub.set_defaults(run=_run_compare)


def _run_compare(args: argparse.Namespace) -> None:
    from coordexp.evaluation.compare import compare_evaluated
    from coordexp.reporting import write_comparison

    compare_evaluated(args.runs, out=args.out)
    write_comparison(args.out.with_suffix(".html"), compare_json=args.out)
    print(f"{args.out}, {args.out.with_suffix('.html')}: written")


def _detect(commands) -> None:
    example = "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png"
    sub = _command(commands, "detect", "Detect objects in images with a merged checkpoint.", example)
    sub.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    sub.add_argument("--model", type=Path, required=True, help="folder of the merged checkpoint")
    sub.add_argument("--categories", help="comma-separated names; default: every object")
    sub.add_argument("--max-blocks", type=int, default=768, help="budget in 32x32 tiles")
    sub.add_argument("--polygons", action="store_true", help="answers may hold polygons (data.geometry: poly)")
    sub.add_argument("--calibration", type=Path, help="calibration.json of the run: scores become probabilities")
    sub.add_argument("--out", type=Path, help="image with what was found drawn, for one image")
    sub.set_defaults(run=_run_detect)


def _run_detect(args: argparse.Namespace) -> None:
    import msgspec

    from coordexp.datasets.images import load_image
    from coordexp.inference.detect import detect
    from coordexp.inference.draw import draw

    if args.out and len(args.images) > 1:
        raise ConfigError(f"--out is for one image, found {len(args.images)}\n  -> call it once a image")
    categories = args.categories.split(",") if args.categories else None
    options = {"max_blocks": args.max_blocks, "calibration": args.calibration, "polygons": args.polygons}
    for found in detect(args.model, args.images, categories, **options):
        rows = []
        for detection, box, poly in zip(found.detections, found.boxes(), found.polygons(), strict=True):
            outline = {"poly": [round(v, 2) for v in poly]} if poly else {}
            row = {"desc": detection.desc, "bbox": [round(v, 2) for v in box], **outline, "score": detection.score}
            rows.append(row)
        print(msgspec.json.encode({"image": found.path, "detections": rows}).decode())
        if args.out:
            size = found.width, found.height
            draw(load_image(found.path, size, size), found.detections).save(args.out)


def _parse(commands) -> None:
    example = "coordexp parse responses.jsonl --records results/lvis_768/data/val.jsonl --out predictions.jsonl"
    sub = _command(commands, "parse", "Read answers of a vLLM, SGLang or transformers server.", example)
    sub.add_argument("responses", type=Path, help="one response a line; see docs/serving.md for the formats")
    sub.add_argument("--records", type=Path, required=True, help="pixel-space records that were asked about")
    sub.add_argument("--out", type=Path, required=True, help="predictions.jsonl")
    sub.add_argument("--emit-norm", default="norm1000", choices=["norm1000", "norm1000_legacy"])
    sub.set_defaults(run=_run_parse)


def _run_parse(args: argparse.Namespace) -> None:
    from coordexp.inference.import_responses import import_responses

    for reason, count in import_responses(args.responses, args.records, args.out, args.emit_norm).items():
        print(f"{reason}: {count}")


def _summary(commands) -> None:
    sub = _command(commands, "summary", "Headline numbers of a run.", "coordexp summary results/shapes_9")
    sub.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run, with eval.json")
    sub.set_defaults(run=_run_summary)


def _run_summary(args: argparse.Namespace) -> None:
    from coordexp.reporting import headline

    print(headline(args.run_dir / "eval.json"))
    print(f"report: {(args.run_dir / 'report.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
