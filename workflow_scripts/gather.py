"""Rule gather: the shards' predictions as one file in the order of the records."""

from coordexp.infer.predict import gather
from workflow_scripts.arguments import arguments, path, readable_errors

args = arguments(__doc__, shards=[path], predictions=path)
with readable_errors():
    gather(args.shards, args.predictions)
