"""Work in parts: which pictures are whose, and which parts make up a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.runtime.processes import Processes

Shard = tuple[int, int]  # which, from 1, of how many
WHOLE: Shard = (1, 1)
MANIFEST = ".shard.json"
"""Where a finished shard of samples says what it is a part of."""
NAMES = ("target", "data", "train", "path", "prompts")
"""Keys of a context whose values may differ: contents decide, and stand there as hashes."""


class Part(NamedTuple):
    """What is known of a shard that is done."""

    context: Mapping[str, Any]  # the same in all shards of one whole
    shard: Shard


def share(numbers: Sequence[int], shard: Shard) -> Sequence[int]:
    """One of the parts of some numbers, in one piece: most of its batches are those of the whole.

    Parts differ by at most one number in length; one may be empty.
    """
    number, count = shard
    return numbers[len(numbers) * (number - 1) // count : len(numbers) * number // count]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing that decides the result and differs, such as `seed: 0, not 1`."""
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
    """The shards from the first to the last, where they are those of one whole.

    Args:
        parts: By where they lie; at least one.
        whole: What they are parts of, in a word.

    Raises:
        ValueError: one is of another whole, comes twice or is missing; names it.
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
    """Raise where this process would do another thing than the main one. Collective.

    Raises:
        ValueError: another model, other pictures or settings, as on a machine with other files.
    """
    main = processes.agree(context)
    with processes.together():
        if differs := difference(context, main):
            rank = processes.rank
            raise ValueError(f"process {rank} finds something else than process 0: {differs}")
