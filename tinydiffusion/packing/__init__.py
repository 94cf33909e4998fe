"""Packing of any data set into tar shards with a manifest."""
