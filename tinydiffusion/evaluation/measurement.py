"""Evaluators at work: each is given the pictures it needs; an error costs only its own numbers."""

import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tinydiffusion.build import build_evaluators, check_metrics
from tinydiffusion.evaluation.rows import report_row
from tinydiffusion.evaluation.sources import QUANTISATION, Pictures
from tinydiffusion.protocols import SOURCES, EvalBatch, Evaluator, EvaluatorState, Score
from tinydiffusion.registry import BrokenPluginError
from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError

Options = Mapping[str, dict[str, Any]]
Failure = tuple[Literal["error", "skipped"], str]


class Measurement:
    """The named evaluators, what they have seen, and those that have failed.

    Args:
        evaluators: Requested name -> evaluator.
        options: Name -> options that the evaluator was made with.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], options: Options | None = None) -> None:
        self.evaluators, self.options = dict(evaluators), dict(options or {})
        self.names = list(evaluators)  # in the order of the rows
        self.failures: dict[str, Failure] = {}
        self.done: dict[str, int] = dict.fromkeys(
            SOURCES, 0
        )  # pictures measured, the unreadable included
        self.given: dict[str, set[str]] = {source: set() for source in SOURCES}
        self.facts: dict[str, dict[str, Any]] = {}  # evaluator -> further provenance
        self.beat: Callable[[], None] = _nothing  # called after every step of progress

    @classmethod
    def of(cls, metrics: Sequence[str], options: Options) -> "Measurement":
        """Make new evaluators; for one that cannot be made, note the reason instead.

        Raises:
            ValueError: a metric does not exist, or an option is wrong: the user's mistakes.
        """
        check_metrics(metrics, options)
        measurement = cls({}, options)
        measurement.names = list(metrics)
        for name in metrics:
            chosen = {name: options[name]} if name in options else {}
            try:
                measurement.evaluators |= build_evaluators([name], chosen)
            except MissingWeightsError as error:
                measurement.fail(name, "skipped", one_line(error))
            except (WeightsError, BrokenPluginError) as error:
                measurement.fail(name, "error", one_line(error))
            except ValueError:
                raise
            except Exception as error:  # a plug-in's own; see `isolated`
                measurement.fail(name, "error", _described(error))
        return measurement

    def wanting(self, source: str) -> list[str]:
        """List the evaluators that still have to see the pictures of a source."""
        return [
            name
            for name, evaluator in self.evaluators.items()
            if source in evaluator.needs
            and name not in self.failures
            and name not in self.given[source]
        ]

    def needing(self, need: str) -> list[str]:
        """List the evaluators that have this in `needs`."""
        return [name for name, evaluator in self.evaluators.items() if need in evaluator.needs]

    def update(self, batch: EvalBatch) -> None:
        """Pass a batch to all evaluators that still need its source."""
        for name in self.wanting(batch["source"]) if len(batch["id"]) else ():
            with self.isolated(name):
                self.evaluators[name].update(batch)
            self.beat()

    def state(self) -> dict[str, EvaluatorState]:
        """Return the state of every evaluator that has not failed."""
        states = {}
        for name, evaluator in self.evaluators.items():
            if name not in self.failures:
                with self.isolated(name):
                    states[name] = evaluator.state()
        return states

    def load_state(self, states: Mapping[str, EvaluatorState]) -> None:
        """Load states in place of the present ones."""
        for name, state in states.items():
            with self.isolated(name):
                self.evaluators[name].load_state(state)

    def fail(self, name: str, kind: Literal["error", "skipped"], reason: str) -> None:
        """Note why this evaluator has no number, for its row; the first reason counts."""
        self.failures.setdefault(name, (kind, reason))

    def rows(self, remarks: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Make the report rows of all evaluators, in the order of `names`.

        Args:
            remarks: Warnings for every row.
        """
        return [row for name in self.names for row in self._rows_of(name, remarks)]

    def _rows_of(self, name: str, remarks: Sequence[str]) -> list[dict[str, Any]]:
        self.beat()
        rows: list[dict[str, Any]] = []
        if name not in self.failures:
            with self.isolated(name):
                evaluator = self.evaluators[name]
                facts = {"needs": list(evaluator.needs), "quantise": QUANTISATION}
                provenance = {**evaluator.provenance(), **facts, **self.facts.get(name, {})}
                rows = [report_row(score, name, provenance) for score in evaluator.compute()]
                json.dumps(rows)  # what is no JSON raises here, not when the report is written
        if name in self.failures:
            kind, reason = self.failures[name]
            empty = report_row(Score(name, math.nan, 0), name, {})
            del empty["error"]
            rows = [{**empty, kind: reason}]
        return [{**row, "warnings": [*row["warnings"], *remarks]} for row in rows]

    @contextmanager
    def isolated(self, name: str) -> Iterator[None]:
        """Note an error of an evaluator inside the `with`: it costs its own numbers only."""
        try:
            yield
        except Exception as error:  # anything: a plug-in may raise any exception
            self.fail(name, "error", _described(error))


def measure(measurement: Measurement, pictures: Pictures, batch_size: int) -> None:
    """Pass all pictures of a source to the evaluators that need them."""
    size = max(batch_size, pictures.block)
    for first in range(0, len(pictures), size):
        if not measurement.wanting(pictures.source):
            break
        batch = pictures.read(range(first, min(first + size, len(pictures))))
        measurement.update(batch)


def _nothing() -> None:
    pass


def _described(error: Exception) -> str:
    """Format an error's type, its message, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"{type(error).__name__}: {one_line(error)} ({where})"


def one_line(error: Exception) -> str:
    """Return an error's message in one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]
