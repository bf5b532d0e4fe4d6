"""The tokenizer: cells of a video -> chunks of its own choice, and back."""
