"""Checkpoint folders: written whole, checked when read."""
