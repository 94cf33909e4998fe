"""How much a run writes, counted without writing it, and how fast this disk writes."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from tinydiffusion.config import to_dict
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.planning.quantity import Quantity, Section
from tinydiffusion.planning.time import Call, Timetable
from tinydiffusion.runtime.durable import naming_disk_errors
from tinydiffusion.sampling.grids import SampleGrid
from tinydiffusion.training.checkpoints.folder import Checkpoint, CheckpointFolder
from tinydiffusion.training.trainer import Trainer

TENSOR_HEADER = 75  # bytes of a safetensors header per tensor, besides its name
STATE = 2000  # bytes of a checkpoint's counters and manifest
LOG_ROW = 400  # bytes of metrics.jsonl
PIXEL = 5  # bytes of a grid per pixel before it is enlarged, measured on noise
LABEL = 3000  # bytes of a grid per label, measured on six lines of text
TRIAL = 2**25  # bytes that are written to measure a disk's speed


def saving_call(trainer: Trainer) -> Call:
    """Describe when checkpoints are written, and how long one takes.

    Raises:
        DiskError: nothing can be written in the folder of the run.
    """
    size = checkpoint_bytes(trainer)
    speed = bytes_per_second(trainer.run_dir, size)
    note = f"at {speed / 1e6:.0f} MB/s, measured"
    return Call("checkpoints", trainer.checkpoint_every, size / speed, note, at_start=False)


def disk_rows(
    trainer: Trainer, pipeline: TextToImage, times: Timetable, text_states: int
) -> Section:
    """List every part of a run's files, at the moment when they are largest.

    Args:
        trainer: A trainer whose learner has made a step.
        pipeline: The model.
        times: Timetable of the run.
        text_states: Bytes that a frozen text encoder keeps of all captions.
    """
    checkpoint, model = checkpoint_bytes(trainer), model_bytes(pipeline)
    kept = trainer.keep_checkpoints
    samples, log = _samples_bytes(trainer, times), _log_bytes(trainer, times)
    both = f"{kept} and the one being written"
    parts = {
        "checkpoints": Quantity((kept + 1) * checkpoint, "bytes", "counted", both),
        "model/": Quantity(model, "bytes", "counted"),
        "best/": Quantity(2 * model, "bytes", "counted", "the old one and the new one"),
        "text states": Quantity(text_states, "bytes", "estimated", "in the cache"),
        "samples/": Quantity(samples, "bytes", "estimated", "sample grids, at most"),
        "log, data": Quantity(log, "bytes", "estimated", "metrics.jsonl, data/"),
    }
    if pipeline.config.evaluation.keep_best is None:
        del parts["best/"]
    rows = {"a checkpoint": Quantity(checkpoint, "bytes", "counted")}
    rows |= {name: quantity for name, quantity in parts.items() if quantity.value}
    total = sum(quantity.value for quantity in parts.values())
    rows["total"] = Quantity(total, "bytes", "estimated", "at most at one time")
    place = existing(trainer.run_dir)
    rows["free"] = Quantity(shutil.disk_usage(place).free, "bytes", "measured", f"in {place}")
    return rows


def checkpoint_bytes(trainer: Trainer) -> int:
    """Count the bytes of a checkpoint on disk, once the optimizer has its state."""
    *tensors, state = trainer.learner.checkpoint({})
    return sum(map(_file_bytes, tensors)) + _json_bytes({**trainer.identity, **state}, 1) + STATE


def model_bytes(pipeline: TextToImage) -> int:
    """Count the bytes of the model folder."""
    modules: list[Any] = [pipeline.network, pipeline.text_encoder]
    weights = sum(_file_bytes(module.state_dict()) for module in modules)
    return weights + _json_bytes([to_dict(pipeline.config), pipeline.text_encoder.config()], 2)


def grid_bytes(image_shape: tuple[int, ...], num_prompts: int) -> int:
    """Estimate the most bytes that a sample grid takes as a PNG."""
    _, height, width = image_shape
    return num_prompts * (height * width * PIXEL + LABEL)


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def bytes_per_second(folder: Path, num_bytes: int) -> float:
    """Measure how fast checkpoints are written, with a small one that is deleted again.

    Args:
        folder: Where to write; it need not exist yet.
        num_bytes: Size of the run's checkpoint.

    Raises:
        DiskError: nothing can be written there.
    """
    place = existing(folder)
    values = torch.rand(min(TRIAL, num_bytes, shutil.disk_usage(place).free // 2) // 4)
    with (
        naming_disk_errors(place, values.nbytes, all_errors=True),
        tempfile.TemporaryDirectory(prefix=".plan-", dir=place) as trial,
    ):
        checkpoint = Checkpoint({"values": values}, {}, {}, {}, {})
        start = perf_counter()
        CheckpointFolder(Path(trial)).save(checkpoint, pictures_seen=0)
        return values.nbytes / (perf_counter() - start)


def _samples_bytes(trainer: Trainer, times: Timetable) -> int:
    counts = {call.name: times.num_calls(call) for call in times.calls}
    return sum(
        counts["sample grids"] * grid_bytes(hook.pipeline.image_shape, len(hook.prompts))
        for hook in trainer.hooks
        if isinstance(hook, SampleGrid)
    )


def _log_bytes(trainer: Trainer, times: Timetable) -> int:
    rows = min(times.num_steps, times.pictures_seen // trainer.log_every)
    return rows * LOG_ROW + len(json.dumps(dict(trainer.fingerprints)))


def _file_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes + len(name) + TENSOR_HEADER for name, t in tensors.items())


def _json_bytes(content: Any, indent: int) -> int:
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return len(text.encode(errors="backslashreplace"))
