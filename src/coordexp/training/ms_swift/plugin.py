"""Entry point for `--external_plugins`: registers everything of CoordExp with ms-swift."""

from coordexp.training.ms_swift import checkpoint_callback as checkpoints
from coordexp.training.ms_swift import dataset, loss, optimizer, template, trainer, tuner
from coordexp.training.ms_swift import model_loader as loader
from coordexp.training.ms_swift import time_estimate as forecast

for module in (dataset, template, loader, loss, trainer, optimizer, tuner, checkpoints, forecast):
    module.register()
