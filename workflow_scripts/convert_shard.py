"""Rule convert_shard: the images and chunks of records of one shard, which rule convert_resize joins."""

from coordexp.datasets.convert import ConvertOptions, convert_shard
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(
    __doc__, config=config, source=path, records=path, images=path, workers=int, shard=int, shards=int, done=path
)
with job(args.done):
    options = ConvertOptions(**args.config["options"], num_workers=args.workers)
    split = args.source, args.records, args.images
    convert_shard(*split, options, args.config["max_blocks"], args.shard, args.shards)
    args.done.touch()
