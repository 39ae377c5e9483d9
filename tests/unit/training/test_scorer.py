"""The interface between the selection of the best checkpoint and its evaluation."""

import pytest

from coordexp.training.eval_callback import DetectionScorer
from coordexp.training.scorer import Scorer


def test_the_evaluation_of_detections_implements_the_interface():
    assert issubclass(DetectionScorer, Scorer) and not DetectionScorer.__abstractmethods__


def test_an_incomplete_implementation_cannot_be_used(tmp_path):
    class Partial(Scorer):
        def __init__(self, custom, model_dir):
            pass

        def predict(self, model, rank, world_size):
            return []

    with pytest.raises(TypeError, match="score"):
        Partial(None, tmp_path)
