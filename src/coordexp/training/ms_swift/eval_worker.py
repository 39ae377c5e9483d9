"""One training process of a run that generates answers: `worker` plus decoder, evaluation and rollouts.

A module of its own, so that the code identity of training without them does not include them.
"""

from __future__ import annotations

from coordexp.training.ms_swift import worker


def register() -> None:
    """Register detection during training and rollouts with ms-swift."""
    from coordexp.training.ms_swift import eval_plugin  # imports ms-swift, which the launcher must not

    eval_plugin.register()


if __name__ == "__main__":
    worker.main(register)
