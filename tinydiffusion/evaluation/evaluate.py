"""`tinydiffusion evaluate`: a model or a folder of pictures in, a report out."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.reference_cache import source_state
from tinydiffusion.evaluation.report.illustrations import illustrations
from tinydiffusion.evaluation.request import Request, check_request, open_target
from tinydiffusion.evaluation.rows import print_sweep, print_table, write_report
from tinydiffusion.evaluation.session import Saving
from tinydiffusion.evaluation.shared_session import SharedSession
from tinydiffusion.evaluation.sources import ModelPictures
from tinydiffusion.evaluation.state_file import merged, resume
from tinydiffusion.evaluation.statistics_file import StatisticsFile
from tinydiffusion.evaluation.target import Target, save_report
from tinydiffusion.protocols import SOURCES
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.locks import FolderLock
from tinydiffusion.runtime.outputs import check_owner
from tinydiffusion.runtime.parts import WHOLE, check_same
from tinydiffusion.runtime.processes import Processes, joined
from tinydiffusion.runtime.watchdog import Watchdog

FAILED = 1


def evaluate(request: Request) -> int:
    """Measure the metrics, print them and, with `out`, write the report.

    The processes of a launcher share the pictures; the main process prints and writes.

    Returns:
        The exit code: 1 where a metric has failed or a picture cannot be read, else 0. A metric
        that is skipped because its weights are missing has not failed.
    """
    keep_freed_memory()
    with joined(request.device) as processes, ExitStack() as stack:
        if request.state is not None:
            lock = FolderLock(request.state.parent, f".{request.state.name}.lock")
            processes.on_main(lambda: stack.enter_context(lock) and None)
        return _evaluate(request, processes, _console(quiet=not processes.is_main))


def _evaluate(request: Request, processes: Processes, console: Console) -> int:
    minutes = request.hang_minutes
    watchdog = Watchdog(None if minutes is None else 60 * minutes)
    with processes.together(), processes.one_by_one():
        check_request(request)
        if request.samples is not None and processes.is_main:
            check_owner(request.samples, "sample", overwrite=request.overwrite)
        measurement = Measurement.of(request.metrics, request.options)
    measurement.beat = watchdog.beat
    target = open_target(request, measurement, console, processes)
    check_same(target.context, processes)
    remarks = list(target.remarks)
    if isinstance(target.reference, StatisticsFile):
        is_first = processes.is_main and request.shard[0] == 1
        target.reference.give(measurement, load=is_first)
        remarks += target.reference.remarks()
    session = SharedSession(target.context, request.batch_size, console, processes, watchdog)
    saving = request.state and Saving(request.state, request.save_every)
    remarks += session.look_at(measurement, target.sources(), request.shard, saving)
    unreadable = any(processes.gather(any(each.unreadable for each in target.sources())))
    if request.shard != WHOLE:
        console.print(f"shard {request.shard[0]}/{request.shard[1]} in {request.state}")
        return FAILED if unreadable or _has_failed(measurement) else 0
    sweep = [_at(scale, request, target, measurement, session) for scale in request.guidance_scales]

    def report() -> bool:
        with watchdog:
            return _report(request, target, measurement, remarks, sweep, console)

    return FAILED if processes.on_main(report) or unreadable else 0


def _report(
    request: Request, target: Target, measurement: Measurement, remarks: Sequence[str],
    sweep: Sequence[dict[str, Any]], console: Console,
) -> bool:  # fmt: skip
    """Print and write all rows, and return whether a metric has failed."""
    rows = measurement.rows(remarks)
    print_table(rows, str(request.target))  # first: the file may fail to be written
    if sweep:
        print_sweep(sweep)
    if request.out is not None:
        more = {"sweep": sweep} if sweep else {}
        save_report(request.out, target, measurement, rows, more)
        console.print(f"report in {request.out}")
    return _has_failed(measurement, rows)


def merge(files: Sequence[Path], out: Path) -> int:
    """Merge the shards of one evaluation, and print and write their report.

    Returns:
        The exit code: 1 where a metric has failed, else 0.

    Raises:
        ValueError: the files are not the shards of one evaluation, each of them once.
    """
    console = _console()
    whole = merged(files)
    measurement = Measurement.of(whole.context["metrics"], whole.context["options"])
    resume(measurement, whole)
    rows = measurement.rows(whole.remarks)
    print_table(rows, str(whole.context["target"]))
    write_report(out, rows, whole.context, illustrations(measurement))
    console.print(f"report in {out}")
    return FAILED if _has_failed(measurement, rows) else 0


def _at(
    scale: float, request: Request, target: Target, measured: Measurement, session: SharedSession
) -> dict[str, Any]:
    """Measure the metrics at another guidance scale, with the same prompts and seeds. Collective.

    Only the main process returns rows.
    """
    assert target.pipeline is not None
    assert target.sampling is not None
    session.console.print(f"guidance scale {scale:g}")
    is_main = session.processes.is_main
    measurement = Measurement.of(request.metrics, request.options)
    measurement.beat = measured.beat
    for name, evaluator in measurement.evaluators.items():
        with measurement.isolated(name):
            whole = measured.evaluators[name].state()
            for source in SOURCES[1:]:
                if known := source_state(whole, source):
                    if is_main:
                        evaluator.load_state({**evaluator.state(), **known})
                    measurement.given[source].add(name)
    pictures = ModelPictures(
        target.pipeline, target.generated.prompts, seed=request.seed,
        batch_size=request.batch_size,
        sampling=dataclasses.replace(target.sampling, guidance_scale=scale),
    )  # fmt: skip
    session.look_at(measurement, [pictures, *target.sources()[1:]])
    with session.processes.together(), session.watchdog:
        rows = measurement.rows(target.remarks) if is_main else []
    return {"guidance_scale": scale, "results": rows}


def _has_failed(measurement: Measurement, rows: Sequence[dict[str, Any]] = ()) -> bool:
    errors = any(kind == "error" for kind, _ in measurement.failures.values())
    return errors or any("error" in row for row in rows)


def _console(*, quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=quiet)
