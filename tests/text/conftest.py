"""Fixtures that several folders use."""

from open_clip_fixtures import custom_text_folder, open_clip_folder  # noqa: F401
