"""Detection quality during training: where the decoder, the evaluation and ms-swift meet."""
