"""What a run says of its progress: rows, trackers, console."""
