"""Converters and heads: pairs, what learns from them, what is measured of them."""
