"""Entry point for `--external_plugins` of a run with `custom.detection_eval`.

Apart from the plug-in of `coordexp.swift`, so that a run without it does not depend on decoder and evaluation.
"""

from coordexp.training.eval_callback import DetectionScorer
from coordexp.training.ms_swift import best_checkpoint as best

best.register(DetectionScorer)
