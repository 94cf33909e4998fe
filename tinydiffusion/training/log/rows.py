"""The log rows of a run: means, speed and counts over the steps since the last row."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.runtime.clock import Stopwatch
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.training.log.spikes import SpikeDetector
from tinydiffusion.training.log.trackers import JsonlTracker, Row, Tracker
from tinydiffusion.training.log.window import LogWindow, Scalars, longest_run

MAX_SKIPPED_IN_A_ROW = 10


class RunLog:
    """Sends rows to metrics.jsonl and to the trackers while its `with` block lasts.

    Args:
        trackers: Where rows go besides metrics.jsonl.
        run_dir: Folder of the run; made if it is not there.
        pictures_seen: Position from which the run goes on.
        skipped_steps: Steps called off before that.
        loss_spikes: Spikes of the loss before that.
        continues: Whether rows up to the position are kept, or all earlier ones are void.
        processes: Of the run; the main one alone has trackers and writes.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        run_dir: Path,
        *,
        pictures_seen: int,
        skipped_steps: int,
        loss_spikes: int,
        continues: bool,
        processes: Processes,
    ) -> None:
        self.stepping, self.waiting = Stopwatch(), Stopwatch()  # in steps; of that, for data
        self.skipped_steps, self.loss_spikes = skipped_steps, loss_spikes
        self.spikes = SpikeDetector()
        self.diverged = False
        self._processes = processes
        self._trackers = [JsonlTracker(), *trackers] if processes.is_main else []
        self._run_dir = run_dir
        self._row_at = pictures_seen
        self._valid_up_to = pictures_seen if continues else -1
        self._window = LogWindow()
        self._skipped_in_a_row = 0

    def __enter__(self) -> "RunLog":
        if self._processes.is_main:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for tracker in self._trackers:
                tracker.start(self._run_dir, self._valid_up_to)
                stack.callback(tracker.close)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, scalars: list[Scalars], called_off: Float[Tensor, ""]) -> None:
        """One step, see `LogWindow.add`."""
        self._window.add(scalars, called_off)

    def track(self, row: Row) -> None:
        """Send a finished row to every tracker."""
        for tracker in self._trackers:
            tracker.log(row)

    def go_back(self, pictures_seen: int) -> None:
        """Cut the rows beyond a position from which the run goes on a second time."""
        for tracker in self._trackers:
            tracker.close()
            tracker.start(self._run_dir, pictures_seen)
        self._row_at = pictures_seen

    def write_row(self, pictures_seen: int, counters: Mapping[str, float | int]) -> bool:
        """Write a row on the steps since the last one; return whether the loss had a spike in them.

        Does nothing if there were none. Collective.

        Raises:
            NonFiniteError: ten steps in a row were called off.
        """
        if pictures_seen == self._row_at:
            return False
        with self.stepping:  # draining waits for the device
            means, losses, skipped = self._window.drain(self._processes)
        seconds = self.stepping.lap()
        self.skipped_steps += sum(skipped)
        spikes = sum([self.spikes.add(loss) for loss in losses])
        self.loss_spikes += spikes
        row = {
            "pictures_seen": pictures_seen,
            **counters,
            "pictures_per_second": (pictures_seen - self._row_at) / seconds,
            "data_wait": self.waiting.lap() / seconds,
            "skipped_steps": self.skipped_steps,
            "loss_spikes": self.loss_spikes,
            **means,
        }
        self._row_at = pictures_seen
        self.track(row)
        self._stop_if_diverged(skipped, pictures_seen)
        if spikes and self._processes.is_main:
            warnings.warn(
                f"the loss left its usual range before picture {pictures_seen}; a lower learning "
                "rate or gradient_clip avoids that, rollback_on_spike goes back",
                stacklevel=2,
            )
        return spikes > 0

    def _stop_if_diverged(self, skipped: list[bool], pictures_seen: int) -> None:
        longest, self._skipped_in_a_row = longest_run(skipped, self._skipped_in_a_row)
        self.diverged = longest >= MAX_SKIPPED_IN_A_ROW
        if self.diverged:
            raise NonFiniteError(
                f"{longest} steps in a row up to picture {pictures_seen} had a loss or gradient "
                "that is NaN or infinite. The same command goes on from the last checkpoint; if "
                "that fails too, lower the learning rate or look at the pictures in non_finite.json"
            )
