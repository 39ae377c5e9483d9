"""Rule compare: differences of runs from the first one, as JSON and as a page."""

from coordexp.datasets.source import load_source
from coordexp.evaluation.compare import compare_evaluated
from coordexp.reporting.comparison import write_comparison
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, evaluated=[path], source=path, logs=[path], numbers=path, page=path)
with job(args.numbers):
    annotations = args.source.parent / load_source(args.source).annotations
    compare_evaluated(args.evaluated, annotations=annotations, out=args.numbers)
    logs = {evaluated.parent.name: log for evaluated, log in zip(args.evaluated, args.logs, strict=True)}
    write_comparison(args.page, compare_json=args.numbers, train_logs=logs)
