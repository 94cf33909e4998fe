"""Encoding of many captions once, divided among processes, also those of independent jobs."""

import errno
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tinydiffusion.runtime.durable import make_folder, sweep
from tinydiffusion.text.packed_states import StatesFolder, caption_keys
from tinydiffusion.text.state_cache import CaptionStates

BATCH = 64
BIN, MAX_BINS = 512, 512  # captions under one lock (more if there are many), most locks
PART_BYTES = 2**28  # bytes of states held in memory before they are written
HOUR = 3600.0
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

Run = Callable[[list[str]], dict[str, CaptionStates]]
Progress = Callable[[int, int], None]


def encode_ahead(
    run: Run,
    store: StatesFolder,
    captions: Iterable[str],
    share: tuple[int, int],
    progress: Progress | None,
) -> None:
    """Encode one share of the captions and of "", and store the states that are missing.

    Captions are divided into bins by their hashes. The bins are the same for any number of
    processes, and so are the batches; a share is some of the bins. Independent jobs with the same
    captions work on other bins at the same time. If the folder cannot be written, a warning is
    given, and `encode` works without it.

    Args:
        run: Function that computes the states of a batch of captions.
        store: Folder of the states.
        captions: All captions, not only those of the share.
        share: Rank and number of processes.
        progress: Called with the number of captions that are done, and of all in the share.

    Raises:
        ValueError: the share is invalid, or a state overflows the stored precision.
    """
    bins = divide(captions, *share)
    total, done = sum(map(len, bins.values())), 0

    def report(newly: int) -> None:
        nonlocal done
        done += newly
        if progress:
            progress(done, total)

    try:
        for wait in (False, True):  # bins that another job is working on come last
            for number in list(bins):
                if _fill(run, store, number, bins[number], wait, report):
                    del bins[number]
    except OSError as error:
        warn_not_kept(f"in {store.folder}: {error.strerror}")


def divide(captions: Iterable[str], rank: int, count: int) -> dict[int, list[str]]:
    """Return the bins of one share: number -> captions, each once.

    Raises:
        ValueError: there is no such share.
    """
    if not 0 <= rank < count:
        raise ValueError(f"share must be (rank, count) with 0 <= rank < count, got {rank, count}")
    unique = list(dict.fromkeys(["", *captions]))
    num_bins = min(MAX_BINS, math.ceil(len(unique) / BIN))
    bins: dict[int, list[str]] = {number: [] for number in range(rank, num_bins, count)}
    for caption, number in zip(unique, caption_keys(unique)[:, 0] % num_bins, strict=True):
        if number % count == rank:
            bins[int(number)].append(caption)
    return bins


def warn_not_kept(reason: str) -> None:
    """Warn that text states are not stored."""
    warnings.warn(
        f"cannot keep text states {reason}; captions are encoded when training comes to them. "
        "$TINYDIFFUSION_CACHE names another folder",
        stacklevel=4,
    )


def _fill(
    run: Run,
    store: StatesFolder,
    number: int,
    captions: list[str],
    wait: bool,
    report: Callable[[int], None],
) -> bool:
    """Complete a bin and return True, or return False where another job is working on it."""
    if not store.missing(captions):
        report(len(captions))
        return True
    make_folder(store.folder)
    with _turn(store.folder / ".lock", number, wait) as mine:
        if mine:
            sweep(store.folder, older_than=HOUR)
            missing = store.missing(captions)
            report(len(captions) - len(missing))
            for states in _computed(run, missing, report):
                store.add(states)
        return mine


def _computed(
    run: Run, captions: list[str], report: Callable[[int], None]
) -> Iterator[dict[str, CaptionStates]]:
    """Yield the states of captions in portions of about `PART_BYTES`."""
    held: dict[str, CaptionStates] = {}
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        held |= run(batch)
        if start + BATCH >= len(captions) or _nbytes(held) > PART_BYTES:
            yield held
            held = {}
        report(len(batch))


def _nbytes(states: dict[str, CaptionStates]) -> int:
    return sum(own.nbytes for own in states.values())


@contextmanager
def _turn(file: Path, number: int, wait: bool) -> Iterator[bool]:
    """Lock a bin's number inside the `with`; yield whether no other process holds it.

    The operating system frees the locks of a process that dies.
    """
    with file.open("a") as opened:
        yield _lock(opened, number, wait)


if sys.platform == "win32":

    def _lock(file: IO[str], number: int, wait: bool) -> bool:
        del file, number, wait
        return True  # work may be done twice, which does no harm
else:
    import fcntl

    def _lock(file: IO[str], number: int, wait: bool) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            # Other errors: a file system without locks, where work may be done twice.
            return error.errno not in HELD
        return True
