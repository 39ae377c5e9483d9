"""Rule curves: the loss curves of a training as an image."""

from coordexp.reporting.curves import loss_image
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, train_log=path, curves=path)
with job(args.curves):
    loss_image(args.train_log, args.curves)
