"""Rule predict: scored detections in one shard of the images."""

from workflow_scripts.arguments import arguments, config, job, limit_threads, path

numbers = dict.fromkeys(("shard", "shards", "threads", "gpus"), int)
args = arguments(__doc__, config=config, records=path, source=path, model=path, predictions=path, **numbers)
limit_threads(args.threads)
with job(args.predictions):
    if args.config["options"].get("engine") == "vllm":
        from coordexp.inference.vllm_engine.settings import use_python_of_vllm

        use_python_of_vllm()
    from coordexp.runtime.gpus import take_gpus

    take_gpus(args.gpus)

    import msgspec

    from coordexp.answers.render import PromptStyle
    from coordexp.datasets.categories import descriptions, load_categories
    from coordexp.datasets.source import load_source
    from coordexp.inference.options import PredictOptions
    from coordexp.inference.predict import predict
    from coordexp.runtime.io import read_json

    read_json(args.model)  # an unreadable manifest indicates a damaged checkpoint
    categories = load_categories(args.source.parent / load_source(args.source).annotations)
    predict(
        args.model.parent,
        args.records,
        args.predictions,
        msgspec.convert(args.config["options"], PredictOptions),
        msgspec.convert(args.config["style"], PromptStyle),
        categories=list(descriptions(categories, args.config["desc"]).values()),
        emit_norm=args.config["emit_norm"],
        shard=args.shard - 1,
        shards=args.shards,
    )
