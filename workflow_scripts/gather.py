"""Rule gather: predictions of all shards in one file, in the order of the records, with scores calibrated if asked."""

from coordexp.inference.gather import gather
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, shards=[path], records=path, calibration=[path], predictions=path)
with job(args.predictions):
    gather(args.shards, args.predictions, *args.calibration, records=args.records)
