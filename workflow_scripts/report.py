"""Rule report: one self-contained page per run."""

from coordexp.reporting.provenance import provenance
from coordexp.reporting.report import write_report
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(
    __doc__,
    config=config,
    numbers=path,
    predictions=path,
    records=path,
    train_log=path,
    trained=path,
    calibration=[path],
    page=path,
)
with job(args.page):
    write_report(
        args.page,
        eval_json=args.numbers,
        predictions=args.predictions,
        records_jsonl=args.records,
        train_log=args.train_log,
        provenance=provenance(args.trained, *args.calibration),
        num_examples=args.config["gallery"],
    )
