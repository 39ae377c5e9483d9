"""Registers everything of CoordExp with ms-swift, after the user's plug-ins.

It is imported like any other module, so ms-swift's `external_plugins` (file paths) is not needed.
"""

from coordexp.runtime.plugins import load_plugins
from coordexp.training.ms_swift import (
    checkpoint_callback,
    dataset,
    loss,
    model_loader,
    optimizer,
    template,
    time_estimate,
    trainer,
    tuner,
)


def register() -> None:
    """Load the plug-ins listed in $COORDEXP_PLUGINS, then register every part; may be called again."""
    load_plugins()
    for module in (
        dataset,
        template,
        model_loader,
        loss,
        trainer,
        optimizer,
        tuner,
        checkpoint_callback,
        time_estimate,
    ):
        module.register()
