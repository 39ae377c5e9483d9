"""Rule gather: the shards' predictions as one file in the order of the records, scores calibrated if asked."""

from coordexp.infer.gather import gather
from workflow_scripts.arguments import arguments, path, readable_errors

args = arguments(__doc__, shards=[path], calibration=[path], predictions=path)
with readable_errors():
    gather(args.shards, args.predictions, *args.calibration)
