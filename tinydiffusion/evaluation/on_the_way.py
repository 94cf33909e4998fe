"""Evaluation during training, and the best model so far."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tinydiffusion.build import build_evaluators
from tinydiffusion.evaluation.target import evaluate_pipeline
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.errors import NonFiniteError

BEST = "best"
RECORD = "best.json"


class Evaluation:
    """The metrics of the average weights, with the same prompts and seeds every time.

    Args:
        pipeline: The model that is trained.
        reference: Captioned pictures, which give the prompts and are compared with.
        train: The training set, for evaluators that need it.
        metrics: Names of the evaluators.
        options: Evaluator -> its options.
        every: Pictures seen between two evaluations.
        num_images: Pictures to make.
        keep_best: Name of the row by which the best model is kept in `best/`; None keeps none.
        seed: Seed of picture 0.
    """

    def __init__(
        self,
        pipeline: TextToImage,
        reference: Dataset,
        train: Dataset,
        *,
        metrics: Sequence[str],
        options: dict[str, dict[str, Any]],
        every: int,
        num_images: int,
        keep_best: str | None,
        seed: int,
    ) -> None:
        self.pipeline, self.reference, self.train = pipeline, reference, train
        self.metrics, self.options = metrics, options
        self.every, self.num_images, self.seed = every, num_images, seed
        self.keep_best = keep_best

    def __call__(
        self, pictures_seen: int, run_dir: Path, modules: nn.Module
    ) -> dict[str, float | str]:
        """Measure, and return the value of every row that has one, by name; warn of failures.

        Raises:
            ValueError: no row is named `keep_best`; the message lists the names.
        """
        try:
            rows = evaluate_pipeline(
                self.pipeline,
                build_evaluators(self.metrics, self.options),
                self.reference,
                num_images=self.num_images,
                seed=self.seed,
                train=self.train,
            )
        except NonFiniteError as error:
            warnings.warn(f"not measured at picture {pictures_seen}: {error}", stacklevel=2)
            return {}
        for row in rows:
            if "error" in row:
                warnings.warn(f"{row['name']}: {row['error']}", stacklevel=2)
        if self.keep_best is not None:
            self._keep_best(_named(rows, self.keep_best), pictures_seen, run_dir)
        return {row["name"]: row["value"] for row in rows if row["value"] is not None}

    def _keep_best(self, row: Mapping[str, Any], pictures_seen: int, run_dir: Path) -> None:
        """Save a model that is the best so far, then the record.

        A kill in between leaves a model that will be saved again.
        """
        sign = 1 if row["higher_is_better"] else -1
        best = _record(run_dir / RECORD)
        if best is not None and best["pictures_seen"] >= pictures_seen:
            best = None  # of a later part of the run, which was discarded
        if row["value"] is None or (best and sign * row["value"] <= sign * best["value"]):
            return
        self.pipeline.save_pretrained(run_dir / BEST)
        record = {"name": row["name"], "value": row["value"], "pictures_seen": pictures_seen}
        replace_file(run_dir / RECORD, json.dumps(record).encode())


def _named(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for row in rows:
        if row["name"] == name:
            return row
    known = ", ".join(row["name"] for row in rows)
    raise ValueError(f"evaluation.keep_best {name!r} is no row of the metrics; there are {known}")


def _record(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_bytes()) if file.exists() else None
