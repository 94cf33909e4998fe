"""The machine: processes, disk, locks, memory, devices, and errors that end in one line."""
