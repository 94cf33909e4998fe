"""Prompts to pictures on disk, in parts and after interruptions too."""
