"""A training run: from a config to a model folder and a report."""
