"""Rule train: supervised fine-tuning in ms-swift; resumes at the last whole checkpoint."""

from workflow_scripts.arguments import arguments, config, limit_threads, path, readable_errors

args = arguments(
    __doc__, config=config, base=path, train=path, val=path, log=path, curves=path, trained=path, threads=int
)
limit_threads(args.threads)
with readable_errors():
    from coordexp.recipe import merge, typed
    from coordexp.report.curves import loss_picture
    from coordexp.swift.train import train

    paths = {"custom": {"train_jsonl": str(args.train.resolve()), "val_jsonl": str(args.val.resolve())}}
    recipe = typed(merge(args.config["recipe"], paths), "recipe")
    processes = args.config["processes"]
    train(recipe, args.base.parent, args.trained.parent, args.log, processes=processes, threads=args.threads)
    loss_picture(args.log, args.curves)
