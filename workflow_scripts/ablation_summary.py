"""Rule ablation_summary: the arms of the method beside each other."""

from coordexp.ablation import Ablation
from coordexp.report.ablation import write
from workflow_scripts.arguments import ROOT, arguments, config, job, path

args = arguments(__doc__, config=config, summary=path, page=path)
with job(args.summary):
    write(Ablation(args.config, ROOT), args.summary, args.page)
