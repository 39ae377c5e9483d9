"""Entry point for `--external_plugins`: registers everything of CoordExp with ms-swift."""

from coordexp.swift import checkpoints, dataset, loader, loss, optimizer, template, tuner

for module in (dataset, template, loader, loss, optimizer, tuner, checkpoints):
    module.register()
