"""What the phases after pretraining share: the encoder they start from, its tokens, and the run around the loop."""
