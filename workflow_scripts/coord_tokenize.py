"""Rule coord_tokenize: records in coordinate tokens from pixel-space records."""

from coordexp.datasets.tokenize import tokenize
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, records=path, tokens=path)
with job(args.tokens):
    tokenize(args.records, args.tokens, args.config["emit_norm"])
