"""Rule download: provide one split of a dataset, and write its manifest."""

from coordexp.datasets.download import provide
from coordexp.runtime.http_download import restore_urls
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, split=str, raw=path, source=path)
with job(args.source):
    provide(args.config["dataset"], restore_urls(args.config["settings"]), args.split, args.raw, args.source)
