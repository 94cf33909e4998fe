"""What a run will cost on this machine and on several: time, memory and disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from torch import nn

from tinydiffusion.abilities import EncodingAhead
from tinydiffusion.config import TrainingConfig
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.planning.calls import measure_calls
from tinydiffusion.planning.devices import DeviceShare, largest_block, share
from tinydiffusion.planning.disk import disk_rows, saving_call
from tinydiffusion.planning.memory import memory_rows
from tinydiffusion.planning.quantity import Quantity, Section, size
from tinydiffusion.planning.short_runs import checkpoint_remark, warm_up_remark
from tinydiffusion.planning.step import StepCost, measure_steps
from tinydiffusion.planning.time import Timetable
from tinydiffusion.protocols import Dataset, TextEncoder
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.memory import naming_memory
from tinydiffusion.training.trainer import Trainer

SCHEMA = "tinydiffusion.plan/1"
DEVICES = (1, 2, 4, 8)
ENCODED = 64  # captions that are encoded to measure the time


class Plan(NamedTuple):
    """The estimated cost of a run."""

    sections: dict[str, Section]  # model, time, memory, disk
    devices: list[DeviceShare]
    pictures_seen: int
    summary: str
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan, JSON-able."""
        sections = {
            name: {row: quantity._asdict() for row, quantity in section.items()}
            for name, section in self.sections.items()
        }
        devices = [each._asdict() for each in self.devices]
        return {**self._asdict(), "sections": sections, "devices": devices}

    def save(self, file: Path) -> None:
        """Write the plan as JSON; a reader sees the whole of it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": SCHEMA, **self.as_dict()}, indent=1)
        replace_file(file, (text + "\n").encode())


def plan(
    trainer: Trainer,
    pipeline: TextToImage,
    reference: Dataset,
    *,
    captions: Sequence[str] = (),
    devices: Sequence[int] = DEVICES,
    seconds_before: float = 0.0,
) -> Plan:
    """Estimate what a run will cost, from a few steps and pictures that are discarded.

    Nothing is left on disk. The weights stay as they are, but the trainer is used up.

    Args:
        trainer: Trainer of the run, which has not begun.
        pipeline: The model that it trains, with the run's config.
        reference: The set whose captions are the evaluation's prompts.
        captions: The captions that a frozen text encoder will encode ahead.
        devices: Numbers of devices to estimate for.
        seconds_before: Seconds spent so far to read data and build components.

    Raises:
        DiskError: nothing can be written in the folder of the run.
        OutOfMemoryError: a step does not fit the device; the message names what to change.
    """
    components = {"network": pipeline.network, "text encoder": pipeline.text_encoder}
    batch_size = trainer.batches.batch_size * trainer.accumulation
    with naming_memory(trainer.learner.device):
        ahead, text_states = _encoding(pipeline.text_encoder, captions)
        step = measure_steps(trainer, components)
        calls, after = measure_calls(trainer, pipeline, reference)
    times = Timetable(
        step.seconds,
        batch_size,
        trainer.num_pictures,
        trainer.max_seconds,
        [*calls, saving_call(trainer)],
        {
            "preparation": Quantity(seconds_before, "seconds", "measured"),
            **ahead,
            "warm-up": Quantity(step.warm_up, "seconds", "measured", "of the first step"),
            **after,
        },
    )
    at_once, dataset = trainer.batches.batch_size, trainer.batches.dataset
    sections = {
        "model": _model_rows(step, components, batch_size),
        "time": times.rows(),
        "memory": memory_rows(step.memory, trainer.learner.device, at_once, dataset),
        "disk": disk_rows(trainer, pipeline, times, text_states),
    }
    of_one = {"times": times, "memory": step.memory, "accumulation": trainer.accumulation}
    block = largest_block(trainer.learner.module)
    return Plan(
        sections,
        [share(number, **of_one, block_bytes=block) for number in devices],
        times.pictures_seen,
        _summary(times),
        [*_time_warnings(times, pipeline.config.training), *_space_warnings(sections)],
    )


def _encoding(encoder: TextEncoder, captions: Sequence[str]) -> tuple[Section, int]:
    """Estimate the time to encode the captions ahead, and the bytes that the states take."""
    if not isinstance(encoder, EncodingAhead) or not captions:
        return {}, 0
    unique = list(dict.fromkeys(captions))
    encoder.encode([""])  # warm-up
    start = perf_counter()
    encoder.encode(unique[:ENCODED])
    seconds = (perf_counter() - start) * len(unique) / len(unique[:ENCODED])
    note = f"{len(unique)} captions, where they are not in the cache"
    rows = {"text states": Quantity(seconds, "seconds", "estimated", note)}
    return rows, encoder.bytes_for(unique)


def _model_rows(step: StepCost, components: Mapping[str, nn.Module], batch_size: int) -> Section:
    rows: Section = {}
    for name, module in components.items():
        parameters = list(module.parameters())
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        note = {total: "trained", 0: "frozen"}.get(trained, f"{trained} of them trained")
        rows[name] = Quantity(total, "parameters", "counted", note)
    for name, count in step.forward_flops.items():
        note = "per picture" if count else "its states are encoded once"
        rows[f"{name}, forward"] = Quantity(count, "FLOP", "counted", note)
    rows["training step"] = Quantity(step.flops, "FLOP", "counted", "per picture")
    speed = step.flops * batch_size / step.seconds
    rows["reached"] = Quantity(speed, "FLOP/s", "measured", "those of a step, by its time")
    return rows


def _summary(times: Timetable) -> str:
    speed, training = times.batch_size / times.step_seconds, times.num_steps * times.step_seconds
    return (
        f"{speed:.0f} pictures/s: {training / 60:.1f} minutes of training, "
        f"{times.total_seconds / 60:.1f} in all, for {times.pictures_seen} pictures"
    )


def _time_warnings(times: Timetable, training: TrainingConfig) -> list[str]:
    seen = times.pictures_seen
    remarks = [checkpoint_remark(training, seen, times.total_seconds)]
    if times.max_seconds is not None and seen < times.num_pictures:
        remarks += [
            f"max_minutes {times.max_seconds / 60:g} ends the run after about {seen} of "
            f"{times.num_pictures} pictures",
            warm_up_remark(training, seen),
        ]
    return [remark for remark in remarks if remark is not None]


def _space_warnings(sections: Mapping[str, Section]) -> list[str]:
    memory, disk = sections["memory"], sections["disk"]
    needed = max(memory["total"].value, memory["peak"].value)
    warnings = []
    if needed > memory["device"].value:
        warnings.append(
            f"{size(needed)} of memory are needed, {memory['device']} are free: raise "
            "training.accumulation, or set network.gradient_checkpointing to true"
        )
    if disk["total"].value > disk["free"].value:
        warnings.append(
            f"{disk['total']} of disk are needed, {disk['free']} are free {disk['free'].note}: "
            "lower training.keep_checkpoints, or choose another --run-dir"
        )
    return warnings
