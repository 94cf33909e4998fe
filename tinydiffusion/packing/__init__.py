"""Any data set as tar shards with a manifest."""
