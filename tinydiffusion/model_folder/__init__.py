"""The model folder: written whole or not at all, safe to open wherever it comes from."""
