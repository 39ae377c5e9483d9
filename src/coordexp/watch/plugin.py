"""Entry point for `--external_plugins` of a run with `custom.detection_eval`.

Apart from the plug-in of `coordexp.swift`, so that a run without it does not depend on decoder and evaluation.
"""

from coordexp.swift import best
from coordexp.watch.detection import DetectionScorer

best.register(DetectionScorer)
