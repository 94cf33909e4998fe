"""A measurement on disk: to go on after a crash, and to put shards together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinydiffusion.commands._measuring import Measurement
from tinydiffusion.durable import replace_file
from tinydiffusion.protocols import EvaluatorState

SCHEMA = "tinydiffusion.eval-state/1"
NAMES = ("target", "data", "train", "path", "prompts")
"""Keys of a context whose values may differ: contents decide, and stand there as hashes."""
States = dict[str, EvaluatorState]


@dataclass
class StateFile:
    """What one process has measured of a larger whole.

    Attributes:
        context: What is measured and how; parts of one evaluation have its `identity` in common.
        shard: Which part this is, of how many.
        states: Evaluator -> state.
        progress: What `Measurement` knows besides: done, given, failures.
        remarks: Warnings for every row.
        complete: Whether all pictures of the part have been looked at.
    """

    context: dict[str, Any]
    shard: tuple[int, int] = (1, 1)
    states: States = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    complete: bool = False


def save_state(file: Path, state: StateFile) -> None:
    """Write it; a reader sees the whole of it, or the one before."""
    tensors: dict[str, Tensor] = {}
    merging: dict[str, str] = {}
    for name, parts in state.states.items():
        for key, (tensor, how) in parts.items():
            tensors[f"{name}|{key}"] = tensor.detach().cpu().contiguous().clone()
            merging[f"{name}|{key}"] = how
    about = {
        "schema": SCHEMA, "context": state.context, "shard": state.shard, "merging": merging,
        "progress": state.progress, "remarks": state.remarks, "complete": state.complete,
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, save(tensors, metadata={"about": json.dumps(about)}))


def read_state(file: Path) -> StateFile:
    """What `save_state` wrote.

    Raises:
        ValueError: there is no such file, it is damaged, or it is something else.
    """
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {}).get("about", "{}"))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot read the state {file}: {error}") from error
    if about.get("schema") != SCHEMA:
        raise ValueError(f"{file} is no state of an evaluation: its schema is not {SCHEMA!r}")
    states: States = {}
    for key, how in about["merging"].items():
        name, _, part = key.partition("|")
        states.setdefault(name, {})[part] = (tensors[key], how)
    number, count = about["shard"]
    return StateFile(
        about["context"], (number, count), states, about["progress"], about["remarks"],
        about["complete"],
    )  # fmt: skip


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing that decides the numbers and differs, such as `seed: 0, not 1`."""
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


def progress_of(measurement: Measurement) -> dict[str, Any]:
    """What the measurement knows besides the states, JSON-able."""
    return {
        "done": measurement.done,
        "given": {source: sorted(names) for source, names in measurement.given.items()},
        "failures": measurement.failures,
        "facts": measurement.facts,
    }


def resume(measurement: Measurement, state: StateFile) -> None:
    """Have the measurement go on where the state was saved."""
    measurement.load_state(state.states)
    measurement.done |= state.progress["done"]
    measurement.facts |= state.progress["facts"]
    for source, names in state.progress["given"].items():
        measurement.given[source] |= set(names)
    for name, (kind, reason) in state.progress["failures"].items():
        measurement.fail(name, kind, reason)


def merged(files: Sequence[Path]) -> StateFile:
    """The whole that these shards are the parts of.

    Raises:
        ValueError: one is damaged, unfinished or of another evaluation, comes twice or is missing.
    """
    states = {file: read_state(file) for file in files}
    first_file, first = next(iter(states.items()))
    seen: dict[int, Path] = {}
    for file, state in states.items():
        if differs := difference(state.context, first.context):
            raise ValueError(f"{file} is of another evaluation than {first_file}: {differs}")
        if state.shard[1] != first.shard[1]:
            counts = f"{state.shard[1]} shards, not {first.shard[1]}"
            raise ValueError(f"{file} is of another evaluation than {first_file}: {counts}")
        if not state.complete:
            raise ValueError(f"{file} is not finished: run its command again, it goes on")
        if (number := state.shard[0]) in seen:
            both = f"both {seen[number]} and {file} are shard {number}/{first.shard[1]}"
            raise ValueError(f"{both}: every picture is measured once")
        seen[number] = file
    if missing := [str(n) for n in range(1, first.shard[1] + 1) if n not in seen]:
        raise ValueError(f"shards missing: {', '.join(missing)} of {first.shard[1]}")
    return _merge([states[seen[number]] for number in sorted(seen)])


def _merge(parts: Sequence[StateFile]) -> StateFile:
    whole = StateFile(parts[0].context, complete=True)
    whole.progress = {"done": {}, "given": {}, "failures": {}, "facts": {}}
    for part in parts:
        whole.progress["failures"] |= part.progress["failures"]
        whole.progress["facts"] |= part.progress["facts"]
        whole.remarks += [remark for remark in part.remarks if remark not in whole.remarks]
    names = [n for n in parts[0].states if all(n in part.states for part in parts)]
    whole.states = {name: merge_states([part.states[name] for part in parts]) for name in names}
    return whole


def merge_states(states: Sequence[EvaluatorState]) -> EvaluatorState:
    """The state of all pictures together: each tensor by sum or by concatenation."""
    merged: EvaluatorState = {}
    for key, (_, how) in states[0].items():
        tensors = [state[key][0] for state in states]
        full = [t for t in tensors if len(t.shape) == 0 or len(t)] or tensors[:1]
        merged[key] = (torch.stack(tensors).sum(0) if how == "sum" else torch.cat(full), how)
    return merged
