"""Where a run's numbers go: one row per call, as JSON lines always, elsewhere on request."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tinydiffusion.runtime.durable import replace_file

Row = Mapping[str, float | int | str]
"""Scalars by name, `pictures_seen` always among them; a hook may add a string (a file's path)."""


@runtime_checkable
class Tracker(Protocol):
    """Something that takes the rows of a run as they come."""

    def start(self, run_dir: Path, pictures_seen: int) -> None:
        """Get ready; what was logged beyond `pictures_seen` is void (-1: everything)."""
        ...

    def log(self, row: Row) -> None:
        """Take one row."""
        ...

    def close(self) -> None:
        """Write what is left; nothing follows."""
        ...


class JsonlTracker:
    """`metrics.jsonl`: one JSON object per line, there the moment it is logged."""

    def start(self, run_dir: Path, pictures_seen: int) -> None:
        """Open the file and cut the rows beyond the position that the run goes on from."""
        self.path = run_dir / "metrics.jsonl"
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if _is_row_up_to(line, pictures_seen)]
        replace_file(self.path, b"".join(kept))
        self._there = {_kind(json.loads(line)) for line in kept} if kept else set()
        self._file = self.path.open("a")

    def log(self, row: Row) -> None:
        """Append the row, unless it is there: a hook runs again if a kill came before the save."""
        if _kind(row) in self._there:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """Event files for TensorBoard in the run's folder `tensorboard/`.

    Raises:
        ValueError: the tensorboard package is not installed.
    """

    def __init__(self) -> None:
        try:
            self._module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ValueError(
                "the TensorBoard tracker needs the package tensorboard; "
                'install it with: pip install "tinydiffusion[tensorboard]"'
            ) from error

    def start(self, run_dir: Path, pictures_seen: int) -> None:
        """Open a new event file; TensorBoard hides older points beyond `pictures_seen`."""
        self._writer: Any = self._module.SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=pictures_seen + 1
        )

    def log(self, row: Row) -> None:
        """Every number of the row, over pictures seen."""
        for name, value in row.items():
            if name != "pictures_seen" and not isinstance(value, str):
                self._writer.add_scalar(name, value, int(row["pictures_seen"]))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _kind(row: Row) -> tuple[float | int | str, ...]:
    """Return position and names of a row: a run has at most one row of each kind."""
    return (row["pictures_seen"], *sorted(row))


def _is_row_up_to(line: bytes, pictures_seen: int) -> bool:
    # A kill may have cut the last line short, and a full disk any line.
    try:
        return line.endswith(b"\n") and json.loads(line)["pictures_seen"] <= pictures_seen
    except (ValueError, KeyError, TypeError):
        return False
