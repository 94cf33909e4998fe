"""What the processes of a run must see alike, so that none goes on where another stops."""

import signal

import torch

from tinydiffusion.runtime.clock import Stopwatch
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.runtime.signals import StopRequest


class Agreement:
    """One clock and one set of signals for all processes.

    Attributes:
        seconds: Of the main process's clock, at the last `reach`.
        stopped_by: Name of the signal that asked any of them for the end, or None.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.seconds = 0.0
        self.stopped_by: str | None = None
        self._save = False

    def reach(self, clock: Stopwatch, stop: StopRequest) -> None:
        """Tell the others what this process has seen, and learn what they have. Collective."""
        seconds = clock.seconds if self.processes.is_main else 0.0
        number = 0 if stop.received is None else signal.Signals[stop.received].value
        own = torch.tensor([seconds, number, stop.take_save()], dtype=torch.float64)
        self.seconds, number, save = self.processes.largest(own).tolist()
        self._save = self._save or save > 0
        if number:
            self.stopped_by = signal.Signals(int(number)).name

    def take_save(self) -> bool:
        """Return whether any process was asked for a checkpoint since the last call."""
        asked, self._save = self._save, False
        return asked
