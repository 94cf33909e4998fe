"""A number of a plan, and whether it is counted, measured or estimated."""

from typing import Literal, NamedTuple

PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
DURATIONS = (("days", 86400), ("h", 3600), ("min", 60))


class Quantity(NamedTuple):
    """A value: counted exactly, measured here in a few steps, or estimated from both."""

    value: float
    unit: Literal["parameters", "FLOP", "FLOP/s", "seconds", "bytes", "pictures"]
    how: Literal["counted", "measured", "estimated"]
    note: str = ""

    def __str__(self) -> str:
        """Format the value to three digits, in a readable unit."""
        if self.unit == "seconds":
            return duration(self.value)
        if self.unit == "bytes":
            return size(self.value)
        if self.unit == "pictures":
            return f"{self.value:.0f}"
        return _prefixed(self.value, "" if self.unit == "parameters" else self.unit)


Section = dict[str, Quantity]
"""Name -> number, for the numbers of one kind."""


def size(num_bytes: float | int) -> str:
    """Format bytes in kB, MB, GB ... with a factor of 1000."""
    return _prefixed(num_bytes, "B")


def duration(seconds: float | int) -> str:
    """Format a duration in milliseconds, seconds, minutes, hours or days."""
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    for unit, scale in DURATIONS:
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"


def _prefixed(value: float | int, unit: str) -> str:
    for prefix, scale in PREFIXES:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()
