"""Rule fetch_model: the base checkpoint as a local folder."""

from coordexp.model.fetch import fetch
from workflow_scripts.arguments import arguments, config, path, readable_errors

args = arguments(__doc__, config=config, fetched=path)
with readable_errors():
    fetch(args.config["name"], args.config["settings"], args.fetched.parent)
