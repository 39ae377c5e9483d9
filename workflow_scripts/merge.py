"""Rule merge: the trained weights as a plain Hugging Face checkpoint."""

from coordexp.modeling.merge import merge
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, base=path, trained=path, merged=path)
with job(args.merged.parent):
    merge(args.base.parent, args.trained.parent, args.merged.parent, allow_overwrite=True)
