"""All pictures of an evaluation, or of one shard of it, past the evaluators once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.reference_cache import keep_states, take_states
from tinydiffusion.evaluation.sources import Pictures
from tinydiffusion.evaluation.state_file import (
    StateFile,
    progress_of,
    read_state,
    resume,
    save_state,
)
from tinydiffusion.runtime.parts import Shard, difference, share


class Saving(NamedTuple):
    """File and interval with which a measurement is saved."""

    file: Path
    every: int  # pictures


def shard_ids(pictures: Pictures, shard: Shard) -> list[int]:
    """List the picture numbers of one shard: consecutive whole blocks, divided by `parts.share`.

    Where processes share a shard, their parts are the shards of a finer division.
    """
    size, total = pictures.block, len(pictures)
    blocks = share(range(-(-total // size)), shard)
    return [i for block in blocks for i in range(block * size, min((block + 1) * size, total))]


def run_session(
    measurement: Measurement,
    sources: Sequence[Pictures],
    context: dict[str, Any],
    *,
    shard: Shard,
    saving: Saving | None,
    batch_size: int,
    console: Console,
) -> list[str]:
    """Pass all pictures of a shard to the evaluators that need them, and return the remarks.

    Args:
        measurement: Receives the pictures.
        sources: The pictures, one entry per source.
        context: See `StateFile`.
        shard: The part of the pictures to measure.
        saving: Where to save the state; an existing file is continued.
        batch_size: Pictures read together; alters no number.
        console: For the progress bar.

    Raises:
        ValueError: the state file is of another evaluation.
    """
    state = StateFile(context, shard)
    if saving is not None and saving.file.exists():
        state = earlier_state(saving.file, context, shard)
        resume(measurement, state)
        looked_at = sum(measurement.done.values())
        console.print(f"{looked_at} pictures have been looked at already, by {saving.file}")
    remarks = list(state.remarks)
    for pictures in sources:
        ids = shard_ids(pictures, shard)
        remarks += take_states(measurement, pictures, ids)
        _look_at(measurement, pictures, ids, state, saving, batch_size, console)
        keep_states(measurement, pictures, ids)
        remarks += [each for each in pictures.remarks() if each not in remarks]
        state.remarks = remarks
    if saving is not None:
        state.complete = True
        _save(saving.file, state, measurement)
    return remarks


def _look_at(
    measurement: Measurement, pictures: Pictures, ids: Sequence[int], state: StateFile,
    saving: Saving | None, batch_size: int, console: Console,
) -> None:  # fmt: skip
    source = pictures.source
    size = max(batch_size, pictures.block)
    saved = start = measurement.done[source]
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(source, total=len(ids), completed=start)
        for first in range(start, len(ids), size):
            if not measurement.wanting(source):
                break
            part = ids[first : first + size]
            measurement.update(pictures.read(part))
            measurement.done[source] = first + len(part)
            bar.advance(task, len(part))
            if saving is not None and measurement.done[source] - saved >= saving.every:
                saved = measurement.done[source]
                state.remarks = [*dict.fromkeys([*state.remarks, *pictures.remarks()])]
                _save(saving.file, state, measurement)


def earlier_state(file: Path, context: dict[str, Any], shard: Shard) -> StateFile:
    """Read the state that an earlier call has saved.

    Raises:
        ValueError: the file is damaged, or of another evaluation.
    """
    state = read_state(file)
    differs = difference(context, state.context)
    if differs is None and state.shard != shard:
        differs = "shard: {}/{}, not {}/{}".format(*shard, *state.shard)
    if differs is not None:
        raise ValueError(
            f"{file} is the state of another evaluation ({differs}); remove it or name another file"
        )
    return state


def _save(file: Path, state: StateFile, measurement: Measurement) -> None:
    state.states = measurement.state()
    state.progress = progress_of(measurement)
    save_state(file, state)
