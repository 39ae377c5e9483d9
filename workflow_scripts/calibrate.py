"""Rule calibrate: fit the probability that a detection is correct, on images that training never sees."""

from coordexp.datasets.categories import load_categories
from coordexp.datasets.source import load_source
from coordexp.inference.calibrate import fit
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(
    __doc__, config=config, predictions=path, records=path, source=path, trained_on=[path], calibration=path
)
with job(args.calibration):
    source = load_source(args.source)
    fit(
        args.predictions,
        args.records,
        load_categories(args.source.parent / source.annotations),
        args.calibration,
        args.config["method"],
        federated=source.federated,
        trained_on=args.trained_on,
    )
