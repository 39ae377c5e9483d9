"""Rule curves: the loss of a training as a picture."""

from coordexp.report.curves import loss_picture
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, train_log=path, curves=path)
with job(args.curves):
    loss_picture(args.train_log, args.curves)
