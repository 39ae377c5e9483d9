"""Rule download: provide one split of a dataset, and write its manifest."""

from coordexp.datasets.download import provide
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, split=str, raw=path, source=path)
with job(args.source):
    provide(args.config["dataset"], args.config["settings"], args.split, args.raw, args.source)
