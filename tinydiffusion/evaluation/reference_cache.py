"""States of reference and training pictures, kept by content, so that they are seen once."""

import hashlib
import json
from collections.abc import Sequence

from safetensors.torch import load, save

from tinydiffusion import __version__
from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.sources import Pictures
from tinydiffusion.pictures.cache import read_entry, write_entry
from tinydiffusion.protocols import SOURCES, EvaluatorState

SCHEMA = "tinydiffusion.eval-reference/3"
KEPT = ("reference", "train")


def take_states(measurement: Measurement, pictures: Pictures, ids: Sequence[int]) -> list[str]:
    """Load cached states of the same pictures into the evaluators, and return the remarks."""
    remarks: list[str] = []
    for name in measurement.wanting(pictures.source) if _not_begun(measurement, pictures) else ():
        key = _key(measurement, name, pictures, ids)
        entry = None if key is None else read_entry(key)
        if entry is None:
            continue
        about, content = entry
        tensors = load(content.numpy().tobytes())
        with measurement.isolated(name):
            evaluator = measurement.evaluators[name]
            known: EvaluatorState = {k: (tensors[k], how) for k, how in about["merging"].items()}
            evaluator.load_state({**evaluator.state(), **known})
            measurement.given[pictures.source].add(name)
            said = [f"{n} {pictures.source} pictures: {note}" for note, n in about["notes"].items()]
            remarks += [remark for remark in said if remark not in remarks]
    return remarks


def keep_states(measurement: Measurement, pictures: Pictures, ids: Sequence[int]) -> None:
    """Cache the evaluators' states of these pictures, once all are read and none is broken."""
    if measurement.done[pictures.source] < len(ids) or pictures.unreadable:
        return
    for name in measurement.wanting(pictures.source):
        key = _key(measurement, name, pictures, ids)
        if key is None:
            continue
        with measurement.isolated(name):
            state = source_state(measurement.evaluators[name].state(), pictures.source)
            if not state:
                continue
            tensors = {k: tensor.cpu().contiguous().clone() for k, (tensor, _) in state.items()}
            merging = {k: how for k, (_, how) in state.items()}
            about = {"merging": merging, "notes": dict(pictures.notes)}
            write_entry(key, about, bytearray(save(tensors)))


def source_state(state: EvaluatorState, source: str) -> EvaluatorState:
    """Return the part of a state that belongs to one source; empty where a key names no source."""
    if not all(key.partition("/")[0] in SOURCES for key in state):
        return {}
    return {key: part for key, part in state.items() if key.startswith(f"{source}/")}


def _not_begun(measurement: Measurement, pictures: Pictures) -> bool:
    return measurement.done[pictures.source] == 0


def _key(measurement: Measurement, name: str, pictures: Pictures, ids: Sequence[int]) -> str | None:
    """Hash files, prompts, resize, evaluator, extractor and weights, but no path.

    Returns:
        The key; None where the content is unknown, or pictures of this source are not kept.
    """
    content = pictures.content_key(ids)
    if pictures.source not in KEPT or content is None:
        return None
    key = None
    with measurement.isolated(name):
        evaluator = measurement.evaluators[name]
        kind = f"{type(evaluator).__module__}:{type(evaluator).__qualname__}"
        parts = [
            SCHEMA, __version__, kind, evaluator.provenance(), measurement.options.get(name),
            pictures.source, content, hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest(),
        ]  # fmt: skip
        key = "evaluation-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return key
