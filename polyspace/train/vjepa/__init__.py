"""Latent prediction: masks, questions, the step, and what watches it."""
