"""Rule curves: the loss curves of a training run as an image."""

from coordexp.reporting.curves import plot_losses
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, train_log=path, curves=path)
with job(args.curves):
    plot_losses(args.train_log, args.curves)
