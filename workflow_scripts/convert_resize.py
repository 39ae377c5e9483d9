"""Rule convert_resize: resized images and pixel-space records from source images and annotations."""

from coordexp.datasets.convert import ConvertOptions, convert
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(
    __doc__, config=config, source=path, records=path, stats=path, provenance=path, images=path, workers=int
)
with job(args.records):
    options = ConvertOptions(**args.config["options"], num_workers=args.workers)
    convert(args.source, args.records, args.images, options, args.config["max_blocks"], args.stats, args.provenance)
