"""Conversion of captions to tokens, and the states of frozen text encoders on disk."""
