"""What a run will cost in time, memory and disk."""
