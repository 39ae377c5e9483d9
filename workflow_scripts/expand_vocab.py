"""Rule expand_vocab: a base with coordinate tokens, as a new checkpoint."""

from coordexp.modeling.vocab import expand
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, base=path, expanded=path)
with job(args.expanded.parent):
    expand(args.base.parent, args.expanded.parent, init=args.config["init"])
