"""Rule fetch_model: a base checkpoint as a local folder."""

from coordexp.modeling.base_model import fetch
from workflow_scripts.arguments import arguments, config, job, path

args = arguments(__doc__, config=config, fetched=path)
with job(args.fetched.parent):
    fetch(args.config["name"], args.config["settings"], args.fetched.parent)
