"""Reading pictures with a trained checkpoint: grammar, batched decoding, scores, overlays."""
