"""Captioned pictures: one plug-in per file."""
