"""Rule train: supervised fine-tuning in ms-swift; resumes at the last whole checkpoint."""

from workflow_scripts.arguments import ROOT, arguments, config, limit_threads, path, readable_errors

args = arguments(
    __doc__,
    config=config,
    base=path,
    train=path,
    val=path,
    source=path,
    log=path,
    curves=path,
    trained=path,
    threads=int,
    gpus=int,
    nodes=int,
)
limit_threads(args.threads)
with readable_errors():
    from coordexp.data.samples import write_table
    from coordexp.recipe import typed
    from coordexp.report.curves import loss_picture
    from coordexp.settings_file import merge
    from coordexp.swift.launch import Layout
    from coordexp.swift.train import train

    table = write_table(args.source, args.log.parent / "categories.json", args.config["desc"])
    paths = {"train_jsonl": args.train, "val_jsonl": args.val, "categories": table}
    paths = {name: str(path.resolve()) for name, path in paths.items()}
    recipe = typed(merge(args.config["recipe"], {"custom": paths}), "recipe")
    if recipe.custom.fusion_config:
        recipe.custom.fusion_config = str(ROOT / recipe.custom.fusion_config)
    layout = Layout.of(args.gpus, args.nodes, args.config["processes"], args.threads)
    train(recipe, args.base.parent, args.trained.parent, args.log, layout)
    loss_picture(args.log, args.curves)
