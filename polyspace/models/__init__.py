"""Encoders, converters and heads. Models never see losses, data or configuration."""
