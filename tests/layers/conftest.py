"""Fixtures that several folders use."""

from network_fixtures import text_inputs  # noqa: F401
