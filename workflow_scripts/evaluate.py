"""Rule evaluate: metrics of a run against the original annotation file."""

from coordexp.datasets.source import load_source
from coordexp.evaluation.evaluate import evaluate
from coordexp.evaluation.options import options_from
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, predictions=path, source=path, records=path, numbers=path)
with job(args.numbers):
    source = load_source(args.source)
    evaluate(
        args.predictions,
        args.source.parent / source.annotations,
        options_from(args.config),
        dataset=source.dataset,
        split=source.split,
        out=args.numbers,
        records=args.records,
    )
