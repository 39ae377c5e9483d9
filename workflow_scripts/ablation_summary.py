"""Rule ablation_summary: the arms of the method beside each other."""

from coordexp.config.sweeps import Ablation
from coordexp.reporting.sweep_page import write
from workflow_scripts.arguments import ROOT, arguments, config, job, path

args = arguments(__doc__, config=config, summary=path, page=path)
with job(args.summary):
    write(Ablation(args.config, ROOT), args.summary, args.page)
