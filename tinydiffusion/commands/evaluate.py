"""`tinydiffusion evaluate`: a model or a folder of pictures in, a report out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.commands._illustrations import illustrations
from tinydiffusion.commands._measuring import Measurement, measure
from tinydiffusion.commands._reference_cache import source_state
from tinydiffusion.commands._rows import print_sweep, print_table, write_report
from tinydiffusion.commands._session import Saving, run_session
from tinydiffusion.commands._sources import ModelPictures, Pictures
from tinydiffusion.commands._state_file import merged, resume
from tinydiffusion.commands._statistics_file import StatisticsFile
from tinydiffusion.commands._targets import Request, Target, open_target
from tinydiffusion.config import ConfigError
from tinydiffusion.protocols import SOURCES
from tinydiffusion.training.watchdog import Watchdog

FAILED = 1

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def evaluate(request: Request) -> int:
    """0 once every metric is printed and, with `out`, written; 1 where something has failed.

    A metric that is skipped because its weights are missing has not failed; pictures that cannot
    be read have.
    """
    minutes = request.hang_minutes
    with Watchdog(None if minutes is None else 60 * minutes) as watchdog:
        return _evaluate(request, watchdog)


def _evaluate(request: Request, watchdog: Watchdog) -> int:
    if request.shard != (1, 1) and request.state is None:
        raise ConfigError("a shard is of use only once it is kept: name a file with --state")
    measurement = Measurement.of(request.metrics, request.options)
    measurement.beat = watchdog.beat
    target = open_target(request, measurement, console)
    remarks = list(target.remarks)
    if isinstance(target.reference, StatisticsFile):
        target.reference.give(measurement)
        remarks += target.reference.remarks()
    remarks += run_session(
        measurement,
        target.sources(),
        target.context,
        shard=request.shard,
        saving=request.state and Saving(request.state, request.save_every),
        batch_size=request.batch_size,
        console=console,
    )
    if request.shard != (1, 1):
        console.print(f"shard {request.shard[0]}/{request.shard[1]} in {request.state}")
        return _exit_code(measurement.failures.values(), target.sources())
    rows = measurement.rows(remarks)
    more = {"sweep": _sweep(request, target, measurement)} if request.guidance_scales else {}
    if request.out is not None:
        more |= illustrations(measurement, target.generated, rows)
        write_report(request.out, rows, target.context, more)
        console.print(f"report in {request.out}")
    print_table(rows, str(request.target))
    if request.guidance_scales:
        print_sweep(more["sweep"])
    return _exit_code(measurement.failures.values(), target.sources(), rows)


def merge(files: Sequence[Path], out: Path) -> int:
    """0 once the report of all shards together is printed and written.

    Raises:
        ValueError: the files are not the shards of one evaluation, each of them once.
    """
    whole = merged(files)
    measurement = Measurement.of(whole.context["metrics"], whole.context["options"])
    resume(measurement, whole)
    rows = measurement.rows(whole.remarks)
    write_report(out, rows, whole.context, illustrations(measurement))
    console.print(f"report in {out}")
    print_table(rows, str(whole.context["target"]))
    return _exit_code(measurement.failures.values(), (), rows)


def _sweep(request: Request, target: Target, measured: Measurement) -> list[dict[str, Any]]:
    """The same metrics at every guidance scale, of the same prompts and seeds."""
    assert target.pipeline is not None
    assert target.sampling is not None
    points = []
    for scale in request.guidance_scales:
        measurement = Measurement.of(request.metrics, request.options)
        measurement.beat = measured.beat
        for name, evaluator in measurement.evaluators.items():
            with measurement.isolated(name):
                whole = measured.evaluators[name].state()
                for source in SOURCES[1:]:
                    if known := source_state(whole, source):
                        evaluator.load_state({**evaluator.state(), **known})
                        measurement.given[source].add(name)
        sampling = dataclasses.replace(target.sampling, guidance_scale=scale)
        pictures = ModelPictures(
            target.pipeline, target.generated.prompts, seed=request.seed,
            batch_size=request.batch_size, sampling=sampling,
        )  # fmt: skip
        console.print(f"guidance scale {scale:g}")
        for each in (pictures, *target.sources()[1:]):
            measure(measurement, each, request.batch_size)
        points.append({"guidance_scale": scale, "results": measurement.rows(target.remarks)})
    return points


def _exit_code(
    failures: Any, sources: Sequence[Pictures], rows: Sequence[dict[str, Any]] = ()
) -> int:
    failed = any(kind == "error" for kind, _ in failures) or any("error" in row for row in rows)
    return FAILED if failed or any(pictures.unreadable for pictures in sources) else 0
