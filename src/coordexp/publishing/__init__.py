"""Publishing of a trained checkpoint: model card, files without local paths, upload to the Hugging Face Hub."""
