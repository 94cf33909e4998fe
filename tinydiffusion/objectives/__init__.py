"""Objectives: what training makes small."""
