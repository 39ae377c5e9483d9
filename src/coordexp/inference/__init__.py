"""Reading images with a trained checkpoint: grammar, batched decoding, scores, overlays."""
