"""From datasets in any supported format to records, splits and training samples. Does not import torch."""
