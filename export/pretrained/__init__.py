"""Checkpoints of transformers: where they come from, what is read of them, and the eager model that they make."""
