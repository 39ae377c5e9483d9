"""The training objective in plain PyTorch: loss terms, matching, set targets, and the criterion that sums them."""
