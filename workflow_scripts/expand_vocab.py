"""Rule expand_vocab: the base with coordinate tokens, as a new checkpoint."""

from coordexp.model.vocab import expand
from workflow_scripts.arguments import arguments, config, path, readable_errors

args = arguments(__doc__, config=config, base=path, expanded=path)
with readable_errors():
    expand(args.base.parent, args.expanded.parent, init=args.config["init"])
