"""Work in parts: which pictures belong to which part, and which parts make up a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.runtime.processes import Processes

Shard = tuple[int, int]  # number of the shard, from 1, and count of shards
WHOLE: Shard = (1, 1)
MANIFEST = ".shard.json"
"""File of a finished shard of samples with the context and number of the shard."""
NAMES = ("target", "data", "train", "path", "prompts")
"""Keys of a context whose values may differ: hashes of their contents are compared instead."""


class Part(NamedTuple):
    """Context and number of a finished shard."""

    context: Mapping[str, Any]  # the same in all shards of one whole
    shard: Shard


def share(numbers: Sequence[int], shard: Shard) -> Sequence[int]:
    """Return the contiguous part of some numbers that belongs to a shard.

    Most batches of a part are then batches of the whole. Parts differ by at most one number in
    length; one may be empty.
    """
    number, count = shard
    return numbers[len(numbers) * (number - 1) // count : len(numbers) * number // count]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first difference that affects the result, such as `seed: 0, not 1`; else None."""
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if a == b or key in NAMES:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            if inside := difference(a, b):
                return f"{key}.{inside}"
            continue
        return f"{key}: {a!s:.80}, not {b!s:.80}"
    return None


def in_order(parts: Mapping[Path, Part], whole: str) -> list[Path]:
    """Order shards from the first to the last, and check that they make up one whole.

    Args:
        parts: Path -> part; at least one.
        whole: Name of the whole, in one word, for the message.

    Returns:
        Paths in the order of the shards' numbers.

    Raises:
        ValueError: a shard is of another whole, comes twice or is missing; names it.
    """
    first_path, first = next(iter(parts.items()))
    count = first.shard[1]
    seen: dict[int, Path] = {}
    for path, (context, (number, of)) in parts.items():
        differs = difference(context, first.context)
        if differs is None and of != count:
            differs = f"{of} shards, not {count}"
        if differs is not None:
            raise ValueError(f"{path} is of another {whole} than {first_path}: {differs}")
        if number in seen:
            both = f"both {seen[number]} and {path} are shard {number}/{count}"
            raise ValueError(f"{both}: every picture counts once")
        seen[number] = path
    if missing := [str(n) for n in range(1, count + 1) if n not in seen]:
        raise ValueError(f"shards missing: {', '.join(missing)} of {count}")
    return [seen[number] for number in sorted(seen)]


def check_same(context: Mapping[str, Any], processes: Processes) -> None:
    """Check that this process has the same context as the main one. Collective.

    Raises:
        ValueError: model, pictures or settings differ, as on a machine with other files.
    """
    main = processes.agree(context)
    with processes.together():
        if differs := difference(context, main):
            rank = processes.rank
            raise ValueError(f"process {rank} finds something else than process 0: {differs}")
