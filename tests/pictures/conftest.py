"""Fixtures that several folders use."""

from run_fixtures import finished, folder_config, mistake, model, tiny, unchanged, untrained  # noqa: F401
