"""Entry point for `--external_plugins`: registers everything of CoordExp with ms-swift."""

from coordexp.swift import checkpoints, dataset, forecast, loader, loss, optimizer, template, trainer, tuner

for module in (dataset, template, loader, loss, trainer, optimizer, tuner, checkpoints, forecast):
    module.register()
