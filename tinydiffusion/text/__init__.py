"""Captions to tokens, and the states of frozen text encoders on disk."""
