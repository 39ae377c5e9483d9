"""Rule calibration_split: images of the training split that training never sees, and the rest."""

from coordexp.datasets.splits import calibration_split
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, records=path, tokens=path, calibration=path, rest=path, rest_tokens=path)
with job(args.calibration):
    files = (args.records, args.tokens, args.calibration, args.rest, args.rest_tokens)
    calibration_split(*files, args.config["images"], args.config["seed"])
