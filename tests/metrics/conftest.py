"""Fixtures that several folders use."""

from evaluator_fixtures import batch, clip_folder, clip_model, inception_weights, merge, pictures  # noqa: F401
