"""Rule ablation_summary: the arms of the method beside each other."""

from coordexp.ablation import Ablation
from coordexp.report.ablation import write
from workflow_scripts.arguments import ROOT, arguments, config, path, readable_errors

args = arguments(__doc__, config=config, summary=path, page=path)
with readable_errors():
    write(Ablation(args.config, ROOT), args.summary, args.page)
