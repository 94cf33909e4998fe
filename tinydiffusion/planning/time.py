"""When the parts of a run happen, and how long each takes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinydiffusion.planning.quantity import Quantity, Section


class Call(NamedTuple):
    """Work that is done at intervals between two steps."""

    name: str
    every: int  # pictures seen between two calls
    seconds: float  # of one call
    note: str = ""
    at_start: bool = True  # also before the first step


class Timetable(NamedTuple):
    """The time that each part of a run takes."""

    step_seconds: float
    batch_size: int
    num_pictures: int  # set in the config
    max_seconds: float | None  # of steps and calls together
    calls: Sequence[Call]
    once: Mapping[str, Quantity]  # what is done before the first step or after the last

    @property
    def pictures_seen(self) -> int:
        """Pictures that the run will see; fewer than `num_pictures` if `max_seconds` ends it."""
        total = self._seconds(self.num_pictures)
        if self.max_seconds is None or total <= self.max_seconds:
            return self.num_pictures
        return max(1, int(self.num_pictures * self.max_seconds / total))

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps."""
        return self._steps(self.pictures_seen)

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole run, including what is done once."""
        once = sum(quantity.value for quantity in self.once.values())
        return self._seconds(self.pictures_seen) + once

    def num_calls(self, call: Call) -> int:
        """Count how often a call is made in the whole run."""
        return self._calls(call, self.pictures_seen)

    def rows(self) -> Section:
        """List every part of the time."""
        speed = self.batch_size / self.step_seconds
        note = f"{self.batch_size} pictures, {speed:.0f} pictures/s"
        training = self.num_steps * self.step_seconds
        rows = {
            "one step": Quantity(self.step_seconds, "seconds", "measured", note),
            "training": Quantity(training, "seconds", "estimated", f"{self.num_steps} steps"),
        }
        for call in self.calls:
            count = self.num_calls(call)
            note = f"{count} times{', ' * bool(call.note)}{call.note}"
            rows[call.name] = Quantity(count * call.seconds, "seconds", "estimated", note)
        total = Quantity(self.total_seconds, "seconds", "estimated")
        return {**rows, **self.once, "total": total}

    def _seconds(self, num_pictures: int) -> float:
        between = (self._calls(call, num_pictures) * call.seconds for call in self.calls)
        return self._steps(num_pictures) * self.step_seconds + sum(between)

    def _steps(self, num_pictures: int) -> int:
        return -(-num_pictures // self.batch_size)

    def _calls(self, call: Call, num_pictures: int) -> int:
        """Count the calls: at the start, at each crossed multiple of `every`, and at the end."""
        steps = self._steps(num_pictures)
        seen = steps * self.batch_size
        crossed = min(steps, seen // call.every)
        at_the_end = seen // call.every > (seen - self.batch_size) // call.every
        return call.at_start + crossed + (not at_the_end)
