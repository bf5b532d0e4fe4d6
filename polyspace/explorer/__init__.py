"""The explorer page: what a bundle makes of a clip, to look at in a browser."""
