"""One objective in several processes."""
