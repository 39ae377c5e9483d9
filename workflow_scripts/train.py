"""Rule train: supervised fine-tuning in ms-swift; resumes at the last complete checkpoint."""

import os

from workflow_scripts.arguments import ROOT, arguments, config, job, limit_threads, path

args = arguments(
    __doc__,
    config=config,
    base=path,
    train=path,
    val=path,
    source=path,
    log=path,
    messages=path,
    trained=path,
    threads=int,
    gpus=int,
    nodes=int,
    made_from=str,
    rerun_on_code_change=lambda text: text == "True",
)
limit_threads(args.threads)
rank = os.environ.get("NODE_RANK", "0")  # set when the machines of a run are started by hand
with job(args.log.parent.with_name("train" if rank == "0" else f"train-{rank}")):
    from coordexp.datasets.samples import write_category_table
    from coordexp.recipe import parse_recipe
    from coordexp.runtime.config_io import merge
    from coordexp.runtime.gpus import take_gpus
    from coordexp.runtime.notices import console
    from coordexp.training.launch import DistributedConfig
    from coordexp.training.train import train

    console(f"train: see {args.messages} for details; progress is shown here once per minute")
    distributed = DistributedConfig.from_resources(args.gpus, args.nodes, args.config["processes"], args.threads)
    if distributed.nodes == 1:
        take_gpus(distributed.gpus)
    custom = args.config["recipe"]["custom"]
    generated = args.log.parent / "categories.json"
    table = custom["categories"] or write_category_table(args.source, generated, args.config["desc"])
    files = {"train_jsonl": args.train, "val_jsonl": args.val, "categories": path(table)}
    paths = {name: str(file.resolve()) for name, file in files.items()}
    if custom["fusion_config"]:
        paths["fusion_config"] = str(ROOT / custom["fusion_config"])
    recipe = parse_recipe(merge(args.config["recipe"], {"custom": paths}), "recipe")
    options = {"rerun_on_code_change": args.rerun_on_code_change, "made_from": args.made_from}
    train(recipe, args.base.parent, args.trained.parent, args.log, distributed, **options)
