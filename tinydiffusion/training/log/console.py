"""Progress for people: one live line on a terminal, plain lines anywhere else."""

from collections import deque
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from tinydiffusion.training.log.trackers import Row, Tracker


def console_tracker(
    num_pictures: int, max_seconds: float | None = None, console: Console | None = None
) -> Tracker:
    """A live bar where the console (standard error by default) is a terminal, else plain lines."""
    console = console or Console(stderr=True)
    time_left = TimeLeft(num_pictures, max_seconds)
    return LiveBar(console, time_left) if console.is_terminal else PlainLines(console, time_left)


class TimeLeft:
    """Seconds until the end of a run, by the median speed of the last 20 rows."""

    def __init__(self, num_pictures: int, max_seconds: float | None) -> None:
        self.num_pictures = num_pictures
        self.max_seconds = max_seconds
        self._speeds: deque[float] = deque(maxlen=20)

    def after(self, row: Row) -> float:
        """The estimate once this training row is known."""
        self._speeds.append(float(row["pictures_per_second"]))
        left = (self.num_pictures - float(row["pictures_seen"])) / median(self._speeds)
        if self.max_seconds is not None:
            left = min(left, self.max_seconds - float(row["seconds"]))
        return max(0.0, left)


class PlainLines:
    """A line per row, without cursor codes: for log files and pipes."""

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        self._stream = console.file
        self._time_left = time_left

    def start(self, run_dir: Path, pictures_seen: int) -> None:
        """Say where the run lies and where it begins."""
        self._write(_opening(run_dir, pictures_seen))

    def log(self, row: Row) -> None:
        """Write the row as `name value` pairs."""
        if "progress" not in row:
            self._write("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
            return
        seen = f"{row['pictures_seen']}/{self._time_left.num_pictures} pictures"
        self._write(f"{seen}  {_summary(row)}  {_clock(self._time_left.after(row))} left")

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class LiveBar:
    """One line that is redrawn; what hooks report stays above it."""

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        self._time_left = time_left
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=console,
            refresh_per_second=4,
        )

    def start(self, run_dir: Path, pictures_seen: int) -> None:
        """Show the bar."""
        self._bar.console.print(_opening(run_dir, pictures_seen), highlight=False)
        self._task = self._bar.add_task("", total=1.0)
        self._bar.start()

    def log(self, row: Row) -> None:
        """Move the bar, or print a hook's row above it."""
        if "progress" not in row:
            line = "  ".join(f"{name} {_short(value)}" for name, value in row.items())
            self._bar.console.print(line, markup=False, highlight=False)
            return
        left = _clock(self._time_left.after(row))
        self._bar.update(
            self._task,
            completed=float(row["progress"]),
            description=f"{_summary(row)}  {left} left",
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def _opening(run_dir: Path, pictures_seen: int) -> str:
    return f"training in {run_dir} from picture {max(0, pictures_seen)}"


def _summary(row: Row) -> str:
    loss = _short(row.get("loss", "not finite"))
    speed, wait = float(row["pictures_per_second"]), float(row["data_wait"])
    return f"loss {loss}  {speed:.1f} pictures/s  waiting for data {wait:.0%}"


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
