"""One evaluation by several processes: each measures some pictures, then states are merged."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.session import Saving, earlier_state, run_session
from tinydiffusion.evaluation.sources import Pictures
from tinydiffusion.evaluation.state_file import (
    StateFile,
    merge_parts,
    progress_of,
    resume,
    save_state,
)
from tinydiffusion.protocols import SOURCES
from tinydiffusion.runtime.parts import WHOLE, Shard
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.runtime.watchdog import Watchdog

GO_ON = "each goes on with its own part: start as many again, or remove it"


@dataclass(frozen=True)
class SharedSession:
    """An evaluation whose pictures are divided among all processes.

    Attributes:
        context: See `StateFile`.
        batch_size: Pictures read together; alters no number.
        console: For the progress bar.
        processes: The processes that share the pictures.
        watchdog: Watches each process at work, but not while it waits for others.
    """

    context: dict[str, Any]
    batch_size: int
    console: Console
    processes: Processes
    watchdog: Watchdog

    def look_at(
        self,
        measurement: Measurement,
        sources: Sequence[Pictures],
        shard: Shard = WHOLE,
        saving: Saving | None = None,
    ) -> list[str]:
        """Call `run_session` for this process's part, then merge all parts. Collective.

        Afterwards every process has the merged state. Meanwhile each process saves its part in a
        file beside the named one, which is written at the end. The same number of processes can
        continue from the parts.

        Returns:
            The remarks on the pictures.

        Raises:
            ValueError: as `run_session`; or the state was begun by another number of processes.
        """
        processes = self.processes
        whole = processes.on_main(lambda: saving and self._finished(saving.file, shard))
        if processes.count == 1:
            with self.watchdog:
                return self._run(measurement, sources, shard, saving)
        if whole is None:
            with processes.together(), self.watchdog:
                part = self._part(measurement, sources, shard, saving)
            whole = _merge(processes.gather(part))
            if saving is not None:
                processes.on_main(lambda: _save_whole(saving.file, whole))
        resume(measurement, whole)
        return whole.remarks

    def _part(
        self,
        measurement: Measurement,
        sources: Sequence[Pictures],
        shard: Shard,
        saving: Saving | None,
    ) -> StateFile:
        """Measure this process's part of the shard, and return its state."""
        (number, count), processes = shard, self.processes
        own = ((number - 1) * processes.count + processes.rank + 1, count * processes.count)
        if saving is not None:
            suffix = f".{processes.rank + 1}-of-{processes.count}"
            saving = saving._replace(file=saving.file.with_name(saving.file.name + suffix))
        remarks = self._run(measurement, sources, own, saving)
        states, progress = measurement.state(), progress_of(measurement)
        return StateFile(self.context, shard, states, progress, remarks, complete=True)

    def _run(
        self,
        measurement: Measurement,
        sources: Sequence[Pictures],
        shard: Shard,
        saving: Saving | None,
    ) -> list[str]:
        return run_session(
            measurement, sources, self.context, shard=shard, saving=saving,
            batch_size=self.batch_size, console=self.console,
        )  # fmt: skip

    def _finished(self, file: Path, shard: Shard) -> StateFile | None:
        """Read the state that several processes have finished before; None where there is none.

        Raises:
            ValueError: the state was begun by another number of processes.
        """
        if not file.exists():
            for path, begun in sorted(_parts(file).items()):
                if begun != self.processes.count:
                    raise ValueError(f"{path} was begun by {begun} processes; {GO_ON}")
            return None
        if self.processes.count == 1:
            return None  # `run_session` continues from it
        state = earlier_state(file, self.context, shard)
        if not state.complete:
            raise ValueError(f"{file} was begun by one process; {GO_ON}")
        return state


def _merge(parts: Sequence[StateFile]) -> StateFile:
    whole = merge_parts(parts)
    whole.shard = parts[0].shard
    whole.progress["done"] = {
        source: sum(part.progress["done"][source] for part in parts) for source in SOURCES
    }
    whole.progress["given"] = {source: list(whole.states) for source in SOURCES}
    return whole


def _parts(file: Path) -> dict[Path, int]:
    """Map each file in which a process has saved its part to the number of processes."""
    named = re.compile(re.escape(file.name) + r"\.\d+-of-(\d+)")
    found = ((p, named.fullmatch(p.name)) for p in file.parent.glob(f"{glob.escape(file.name)}.*"))
    return {path: int(match[1]) for path, match in found if match}


def _save_whole(file: Path, whole: StateFile) -> None:
    save_state(file, whole)
    for path in _parts(file):
        path.unlink()
