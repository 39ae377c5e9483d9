"""Rule coord_tokenize: pixel-space records -> records in coordinate tokens."""

from coordexp.datasets.tokenize import tokenize
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, records=path, tokens=path)
with job(args.tokens):
    tokenize(args.records, args.tokens, args.config["emit_norm"])
