"""`tinydiffusion pack --check`: check that shards are complete and as they were packed."""

import hashlib
from pathlib import Path

from rich.console import Console

from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.shards.addresses import Shard, find_set
from tinydiffusion.shards.copies import ShardCopies, ShardError
from tinydiffusion.shards.manifest import FILE
from tinydiffusion.shards.members import Sample, index_shard, open_shard

CACHE = 20_000_000_000  # bytes that copies of remote shards may take

console = Console(highlight=False, markup=False, soft_wrap=True)


def check(path: str) -> int:
    """Check that every shard is complete and agrees with its manifest, and print what is wrong.

    Args:
        path: As for the data set `shards`.

    Returns:
        Exit code: 0 if all is right, else 1.

    Raises:
        ValueError: there are no shards, or the manifest is broken.
    """
    found = find_set(path)
    if found.manifest is None:
        console.print(f"no {FILE}: nothing tells what was packed, only what is cut or damaged")
    faults = list(found.skipped)
    pictures = 0
    for shard in found.shards:
        count, wrong = _check_shard(shard)
        pictures += count
        faults += wrong
    for fault in faults:
        console.print(f"{fault.path}: {fault.reason}")
    broken = len({fault.path.partition("/")[0] for fault in faults})
    console.print(
        f"{pictures} pictures in {len(found.shards)} shards; "
        + (f"{broken} shards are not whole" if broken else "all are whole")
    )
    return int(bool(faults))


def _check_shard(shard: Shard) -> tuple[int, list[Skipped]]:
    """Return the number of samples in a shard, and its faults."""
    try:
        opened = (
            ShardCopies(CACHE).open(shard) if shard.is_remote else open_shard(Path(shard.place))
        )
    except ShardError as error:
        return 0, [Skipped(shard.name, str(error))]
    with opened as file:
        entries = index_shard(file, shard.name)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    faults = [entry for entry in entries if isinstance(entry, Skipped)]
    count = sum(isinstance(entry, Sample) for entry in entries)
    record = shard.record
    if record is not None and count != record.pictures:
        faults.append(Skipped(shard.name, f"{count} of {record.pictures} pictures are left"))
    if record is not None and digest != record.sha256:
        faults.append(Skipped(shard.name, "its SHA-256 is not that of the manifest"))
    return count, faults
