"""Faster arithmetic for some layers on some processors."""
