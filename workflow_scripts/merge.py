"""Rule merge: what training produced, as a plain Hugging Face checkpoint."""

from coordexp.model.merge import merge
from workflow_scripts.arguments import arguments, path, readable_errors

args = arguments(__doc__, base=path, trained=path, merged=path)
with readable_errors():
    merge(args.base.parent, args.trained.parent, args.merged.parent, allow_overwrite=True)
