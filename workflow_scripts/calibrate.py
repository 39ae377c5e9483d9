"""Rule calibrate: how often a detection is right by its raw terms, learnt on held-out pictures."""

from coordexp.data.categories import load
from coordexp.data.convert import load_source
from coordexp.infer.calibrate import fit
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(
    __doc__, config=config, predictions=path, records=path, source=path, trained_on=[path], calibration=path
)
with job(args.calibration):
    source = load_source(args.source)
    fit(
        args.predictions,
        args.records,
        load(args.source.parent / source.annotations),
        args.calibration,
        args.config["method"],
        federated=source.layout == "lvis",
        trained_on=args.trained_on,
    )
