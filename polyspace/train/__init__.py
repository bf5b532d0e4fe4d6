"""Training: one loop, one engine interface, and the commands that use them."""
