"""Captions to text states; one encoder per file."""
