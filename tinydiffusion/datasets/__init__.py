"""Data sets of captioned pictures: one plug-in per file."""
