"""Rule predict: answers with scores for one shard of the pictures."""

from workflow_scripts.arguments import arguments, config, limit_threads, path, readable_errors

args = arguments(
    __doc__, config=config, records=path, source=path, model=path, predictions=path, shard=int, shards=int, threads=int
)
limit_threads(args.threads)
with readable_errors():
    from coordexp.data.categories import load
    from coordexp.data.convert import load_source
    from coordexp.infer import PredictOptions, predict
    from coordexp.prompt import PromptStyle

    predict(
        args.model.parent,
        args.records,
        args.predictions,
        PredictOptions(**args.config["options"]),
        PromptStyle(**args.config["style"]),
        categories=[c.name for c in load(args.source.parent / load_source(args.source).annotations)],
        emit_norm=args.config["emit_norm"],
        shard=args.shard,
        shards=args.shards,
    )
