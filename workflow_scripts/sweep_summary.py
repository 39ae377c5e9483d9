"""Rule sweep_summary: the variants of a sweep compared, as numbers and as a page."""

import msgspec

from coordexp.config.sweeps import Sweep
from coordexp.reporting.sweep_summary import write_summary
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, summary=path, page=path)
with job(args.summary):
    sweep = msgspec.json.decode(args.config["sweep"], type=Sweep)
    write_summary(args.config["name"], sweep, args.summary.parents[2], args.summary, args.page)
