"""Train a text-to-image model from scratch and measure whether the text controls it."""

__version__ = "0.1.0"
