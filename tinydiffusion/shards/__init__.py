"""Tar files of captioned pictures: reading them in an order that is a pure function."""
