"""Metric `detections_per_image`."""

from coordexp.evaluation.metrics import METRICS


@METRICS.register("detections_per_image")
def detections_per_image(protocol):
    """Mean number of detections per image."""
    return len(protocol.detections) / protocol.ground_truth.num_images
