"""Pictures to a report of metrics, in one process or many."""
