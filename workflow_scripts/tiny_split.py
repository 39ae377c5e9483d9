"""Rule tiny_split: the same random images from the pixel-space and the token-space file."""

from coordexp.datasets.splits import tiny_split
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, records=path, tokens=path, tiny_records=path, tiny_tokens=path)
with job(args.tiny_records):
    tiny_split(args.records, args.tiny_records, args.config["tiny"], args.config["seed"], space="pixel")
    tiny_split(args.tokens, args.tiny_tokens, args.config["tiny"], args.config["seed"], space="token")
