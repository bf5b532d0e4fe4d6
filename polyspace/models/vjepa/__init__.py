"""Encoders that are trained by predicting hidden content in latent space, and the predictor that trains them."""
