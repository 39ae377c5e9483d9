"""The `coordexp` command: the library without Snakemake."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coordexp.errors import CoordExpError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an expected error ends in its own words and exit code 2."""
    parser = argparse.ArgumentParser(prog="coordexp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for register in (_train, _merge, _validate, _evaluate, _detect, _summary):
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


def _train(commands) -> None:
    example = "coordexp train --config config/train/sft_coord_offset.yaml --model models/qwen-coordexp --out out/adapter"
    sub = _command(commands, "train", "Fine-tune a base with coordinate tokens by a recipe.", example)
    sub.add_argument("--config", type=Path, required=True, help="recipe (YAML with `extends`)")
    sub.add_argument("--base_config", type=Path, help="recipe below it; --config wins")
    sub.add_argument("--model", type=Path, required=True, help="folder of the expanded base")
    sub.add_argument("--out", type=Path, required=True, help="folder of the result; checkpoints and logs lie beside it")
    sub.add_argument("--processes", type=int, default=1, help="processes on this machine, one a GPU")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    sub.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> None:
    from coordexp.recipe import merge, read_extended, typed
    from coordexp.swift.train import train

    below = read_extended(args.base_config) if args.base_config else {}
    recipe = typed(merge(below, read_extended(args.config)), args.config)
    log = args.out.parent / "log.jsonl"
    manifest = train(recipe, args.model, args.out, log, processes=args.processes, threads=args.threads)
    print(f"{args.out}: {manifest['kind']} of step {manifest['step']}")


def _merge(commands) -> None:
    example = "ADAPTERS=out/checkpoint-* OUTPUT_DIR=out/merged ALLOW_OVERWRITE=1 coordexp merge"
    sub = _command(
        commands,
        "merge",
        "Merge LoRA, DoRA and coordinate offsets into a plain checkpoint. Everything comes from the environment: "
        "ADAPTERS (folder or glob), OUTPUT_DIR, and as needed BASE, BEST=1, ALLOW_OVERWRITE=1, GPU_DEVICES.",
        example,
    )
    sub.set_defaults(run=_run_merge)


def _run_merge(_: argparse.Namespace) -> int:
    from coordexp.model.merge import merge_from_env

    return merge_from_env()


def _validate(commands) -> None:
    example = "coordexp validate results/lvis_768/data/train.jsonl --open-images"
    sub = _command(commands, "validate", "Check every rule of the record on every line of a file.", example)
    sub.add_argument("file", type=Path, help="JSONL of records")
    sub.add_argument("--open-images", action="store_true", help="also decode every picture")
    sub.set_defaults(run=_run_validate)


def _run_validate(args: argparse.Namespace) -> int:
    from coordexp.data.validate import validate

    problems = validate(args.file, open_images=args.open_images)
    for problem in problems:
        print(problem)
    print(f"{args.file}: {len(problems)} problem(s)")
    return 1 if problems else 0


def _evaluate(commands) -> None:
    example = "coordexp evaluate --gt instances_val2017.json --pred predictions.jsonl --out eval.json"
    sub = _command(commands, "evaluate", "Score predictions against COCO or LVIS annotations.", example)
    sub.add_argument("--gt", type=Path, required=True, help="annotation file in COCO or LVIS layout")
    sub.add_argument("--pred", type=Path, required=True, help="predictions.jsonl, or results in COCO's JSON")
    sub.add_argument("--out", type=Path, required=True, help="where the numbers go")
    sub.add_argument("--layout", default="coordexp", help="format of the predictions; see docs/evaluation.md")
    sub.add_argument("--subset", action="store_true", help="score only the pictures that were predicted")
    sub.set_defaults(run=_run_evaluate)


def _run_evaluate(args: argparse.Namespace) -> None:
    from coordexp.evaluate import EvaluateOptions, evaluate

    options = EvaluateOptions(subset=args.subset)
    evaluate(args.pred, args.gt, options, dataset=args.gt.stem, split="val", out=args.out, layout=args.layout)
    print(f"{args.out}: written")


def _detect(commands) -> None:
    example = "coordexp detect street.jpg --model results/lvis_768/merged --categories car,person --out boxes.png"
    sub = _command(commands, "detect", "Detect objects in pictures with a merged checkpoint.", example)
    sub.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    sub.add_argument("--model", type=Path, required=True, help="folder of the merged checkpoint")
    sub.add_argument("--categories", help="comma-separated names; default: every object")
    sub.add_argument("--max-blocks", type=int, default=768, help="budget in 32x32 tiles")
    sub.add_argument("--out", type=Path, help="picture with boxes (for one image)")
    sub.set_defaults(run=_run_detect)


def _run_detect(args: argparse.Namespace) -> None:
    from PIL import Image

    from coordexp.infer.detect import detect
    from coordexp.infer.draw import draw
    from coordexp.io import encode_json

    categories = args.categories.split(",") if args.categories else None
    for path, prediction in zip(args.images, detect(args.model, args.images, categories, args.max_blocks), strict=True):
        print(encode_json({"image": str(path), "detections": prediction.detections}))
        if args.out:
            with Image.open(path) as picture:
                draw(picture, prediction.detections).save(args.out)


def _summary(commands) -> None:
    sub = _command(commands, "summary", "Headline numbers of a run.", "coordexp summary results/shapes_9")
    sub.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run, with eval.json")
    sub.set_defaults(run=_run_summary)


def _run_summary(args: argparse.Namespace) -> None:
    from coordexp.report import headline

    print(headline(args.run_dir / "eval.json"))
    print(f"report: {(args.run_dir / 'report.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
