"""Rule evaluate: the numbers of a run against the benchmark's own annotation file."""

from coordexp.evaluate import EvaluateOptions, evaluate
from workflow_scripts.arguments import arguments, config, path, readable_errors

args = arguments(__doc__, config=config, predictions=path, source=path, numbers=path)
with readable_errors():
    options = EvaluateOptions(**args.config["options"], subset=args.config["subset"])
    evaluate(args.predictions, args.source, args.numbers, options)
