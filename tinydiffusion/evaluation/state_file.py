"""A measurement on disk: to continue after a crash, and to merge shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.protocols import EvaluatorState
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.parts import WHOLE, Part, Shard, in_order

SCHEMA = "tinydiffusion.eval-state/1"
States = dict[str, EvaluatorState]


@dataclass
class StateFile:
    """The state of one part of an evaluation.

    Attributes:
        context: What is measured and how; parts of one evaluation have its `identity` in common.
        shard: Which part this is, of how many.
        states: Evaluator -> state.
        progress: What `Measurement` holds besides: done, given, failures, facts.
        remarks: Warnings for every row.
        complete: Whether all pictures of the part have been measured.
    """

    context: dict[str, Any]
    shard: Shard = WHOLE
    states: States = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    complete: bool = False


def save_state(file: Path, state: StateFile) -> None:
    """Write a state to a file; a reader sees the whole of it, or the state before."""
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
    """Read a state that `save_state` wrote.

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


def progress_of(measurement: Measurement) -> dict[str, Any]:
    """Return what the measurement holds besides the states, JSON-able."""
    return {
        "done": measurement.done,
        "given": {source: sorted(names) for source, names in measurement.given.items()},
        "failures": measurement.failures,
        "facts": measurement.facts,
    }


def resume(measurement: Measurement, state: StateFile) -> None:
    """Load a saved state, so that the measurement continues from it."""
    measurement.load_state(state.states)
    measurement.done |= state.progress["done"]
    measurement.facts |= state.progress["facts"]
    for source, names in state.progress["given"].items():
        measurement.given[source] |= set(names)
    for name, (kind, reason) in state.progress["failures"].items():
        measurement.fail(name, kind, reason)


def merged(files: Sequence[Path]) -> StateFile:
    """Read the state files of all shards of an evaluation, and merge them.

    Raises:
        ValueError: one is damaged, unfinished or of another evaluation, comes twice or is missing.
    """
    states: dict[Path, StateFile] = {}
    for file in dict.fromkeys(files):
        states[file] = read_state(file)
        if not states[file].complete:
            raise ValueError(f"{file} is not finished: run its command again, it goes on")
    parts = {file: Part(state.context, state.shard) for file, state in states.items()}
    return merge_parts([states[file] for file in in_order(parts, "evaluation")])


def merge_parts(parts: Sequence[StateFile]) -> StateFile:
    """Merge the states of these parts, in their order."""
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
    """Merge states into that of all pictures: each tensor by sum or by concatenation."""
    merged: EvaluatorState = {}
    for key, (_, how) in states[0].items():
        tensors = [state[key][0] for state in states]
        full = [t for t in tensors if len(t.shape) == 0 or len(t)] or tensors[:1]
        merged[key] = (torch.stack(tensors).sum(0) if how == "sum" else torch.cat(full), how)
    return merged
