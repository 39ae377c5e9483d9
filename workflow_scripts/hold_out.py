"""Rule hold_out: pictures of the training split that training never sees."""

from coordexp.data.split import hold_out
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, records=path, tokens=path, held_out=path, rest=path, rest_tokens=path)
with job(args.held_out):
    files = (args.records, args.tokens, args.held_out, args.rest, args.rest_tokens)
    hold_out(*files, args.config["held_out"], args.config["seed"])
