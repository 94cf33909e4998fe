"""Statistics of reference pictures in a `.npz` file, ours and those of other programs."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinydiffusion.evaluation.measurement import Measurement
from tinydiffusion.evaluation.reference_cache import source_state
from tinydiffusion.protocols import Evaluator, EvaluatorState
from tinydiffusion.runtime.durable import replace_file

SCHEMA = "tinydiffusion.eval-statistics/1"
STATE = "state/"
MOMENTS = ("reference/n", "reference/total", "reference/outer")


class StatisticsFile:
    """Statistics of reference pictures, which stand in for the pictures.

    Args:
        path: A `.npz` file with the arrays `mu` and `sigma`; ours have a `meta` too.
        assumed: The extractor that the user names for a file of another program.

    Raises:
        ValueError: no such file, it is damaged, or it has no such arrays.
    """

    def __init__(self, path: Path, assumed: str | None = None) -> None:
        self.path, self.assumed = path, assumed
        try:
            data = path.read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                names = [n for n in arrays.files if n in ("mu", "sigma", "n", "meta") or STATE in n]
                self.arrays = {name: arrays[name] for name in names}
        except OSError as error:
            raise ValueError(f"cannot read the statistics {path}: {error.strerror}") from error
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no statistics: {error}") from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.meta = self._meta()
        self._check()

    def about(self) -> dict[str, Any]:
        """Return path, content hash, and the file's own description of the pictures."""
        pictures = (self.meta or {}).get("pictures", {})
        return {"path": str(self.path), "sha256": self.sha256, "assumed": self.assumed, **pictures}

    def give(self, measurement: Measurement, *, load: bool = True) -> None:
        """Load the reference into every evaluator; one that does not fit gets an error row.

        Args:
            measurement: Holds the evaluators.
            load: Whether to load it; exactly one part of an evaluation does.
        """
        for name in measurement.wanting("reference"):
            with measurement.isolated(name):
                evaluator = measurement.evaluators[name]
                fitting = self._foreign if self.meta is None else self._own
                known = fitting(name, evaluator)
                if load:
                    evaluator.load_state({**evaluator.state(), **known})
                measurement.given["reference"].add(name)
                facts = {"reference_statistics": self.sha256}
                if self.assumed:
                    facts["assumed_extractor"] = self.assumed
                measurement.facts.setdefault(name, {}).update(facts)

    def remarks(self) -> list[str]:
        """Return the file's remarks; another program's gets one: its extractor is unproven."""
        if self.meta is not None:
            return list(self.meta["remarks"])
        unsaid = "" if "n" in self.arrays else ", nor how many pictures (n_reference is a guess)"
        return [
            f"{self.path} is taken for statistics of {self.assumed}, as you say: it does not say "
            f"extractor, weights and resize{unsaid}"
        ]

    def _own(self, name: str, evaluator: Evaluator) -> EvaluatorState:
        """Return the saved state, after a check that it is of the same extractor."""
        assert self.meta is not None
        now, then = _comparable(evaluator.provenance()), _comparable(self.meta["provenance"])
        for key in dict.fromkeys([*now, *then]):
            if now.get(key) != then.get(key):
                raise StatisticsError(
                    f"{self.path} has statistics with {key} {then.get(key)!s:.80}, {name} needs "
                    f"{now.get(key)!s:.80}"
                )
        merging: Mapping[str, Any] = self.meta["merging"]
        if merging.keys() != source_state(evaluator.state(), "reference").keys():
            raise StatisticsError(f"{self.path} was written for {self.meta['evaluator']}")
        arrays = {key: torch.from_numpy(self.arrays[STATE + key]) for key in merging}
        return {key: (arrays[key], how) for key, how in merging.items()}

    def _foreign(self, name: str, evaluator: Evaluator) -> EvaluatorState:
        """Convert mean and covariance to moments of one fold, so that there is no floor."""
        extractor, state = evaluator.provenance()["extractor"], evaluator.state()
        if not set(MOMENTS) <= state.keys():
            raise StatisticsError(f"{name} needs reference pictures, not their mean and covariance")
        if self.assumed != extractor:
            raise StatisticsError(
                f"{self.path} does not say its extractor; {name} needs {extractor}: if it is that, "
                f"say --assume-extractor {extractor}"
            )
        mu, sigma = (torch.from_numpy(self.arrays[key]).double() for key in ("mu", "sigma"))
        folds, dimensions = state["reference/total"][0].shape
        if len(mu) != dimensions:
            raise StatisticsError(f"{self.path} has {len(mu)} features, {name} {dimensions}")
        n = int(self.arrays["n"]) if "n" in self.arrays else dimensions + 1
        outer = sigma * (n - 1) + n * torch.outer(mu, mu)
        values = (torch.tensor(float(n), dtype=torch.float64), n * mu, outer)
        moments = (_in_first_of(folds, value) for value in values)
        known: EvaluatorState = {k: (m, "sum") for k, m in zip(MOMENTS, moments, strict=True)}
        ids = _ids_of_first_fold(n)
        return {**source_state(state, "reference"), **known, "reference/id": (ids, "cat")}

    def _meta(self) -> dict[str, Any] | None:
        if "meta" not in self.arrays:
            return None
        try:
            meta = json.loads(str(self.arrays["meta"]))
        except ValueError:
            return None  # another program's
        return meta if isinstance(meta, dict) and meta.get("schema") == SCHEMA else None

    def _check(self) -> None:
        if self.meta is not None:
            return
        mu, sigma = self.arrays.get("mu"), self.arrays.get("sigma")
        if mu is None or sigma is None:
            raise ValueError(f"{self.path} holds no statistics: it has no mu and sigma")
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"{self.path}: mu of shape {mu.shape} with sigma of {sigma.shape}")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise ValueError(f"{self.path}: mu or sigma holds NaN or infinity")


class StatisticsError(ValueError):
    """Statistics that do not fit the metric."""


def write_statistics(
    file: Path, name: str, evaluator: Evaluator, pictures: dict[str, Any], remarks: list[str]
) -> None:
    """Write an evaluator's state of its reference, with `mu` and `sigma` where it has moments.

    Args:
        file: Path to write to.
        name: Name of the metric.
        evaluator: An evaluator that has seen all reference pictures.
        pictures: Description of the pictures.
        remarks: Remarks on the pictures.

    Raises:
        ValueError: the evaluator's state does not separate the reference from other pictures.
    """
    state = source_state(evaluator.state(), "reference")
    if not state:
        raise ValueError(f"{name} keeps no statistics of reference pictures alone")
    merging = {key: how for key, (_, how) in state.items()}
    meta = {
        "schema": SCHEMA, "evaluator": name, "provenance": evaluator.provenance(),
        "pictures": pictures, "remarks": remarks, "merging": merging,
    }  # fmt: skip
    arrays: dict[str, Any] = {STATE + key: tensor.numpy() for key, (tensor, _) in state.items()}
    if set(MOMENTS) <= state.keys():
        arrays |= _mean_and_covariance({key: tensor for key, (tensor, _) in state.items()})
    content = io.BytesIO()
    np.savez(content, meta=np.array(json.dumps(meta)), **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, content.getvalue())


def _mean_and_covariance(state: Mapping[str, Tensor]) -> dict[str, Any]:
    n, total, outer = (state[key].sum(0) for key in MOMENTS)
    few = state.get("reference/few/features", torch.zeros(0))
    if len(few):
        rows = few.double()
        n, total, outer = n + len(rows), total + rows.sum(0), outer + rows.T @ rows
    mu = total / n
    sigma = (outer - torch.outer(total, mu)) / (n - 1)
    return {"mu": mu.numpy(), "sigma": sigma.numpy(), "n": int(n)}


def _comparable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes features comparable: all but the versions of packages."""
    return {key: value for key, value in provenance.items() if key != "packages"}


def _in_first_of(folds: int, value: Tensor) -> Tensor:
    return torch.stack([value, *(torch.zeros_like(value) for _ in range(folds - 1))])


def _ids_of_first_fold(n: int) -> Tensor:
    """Return n numbers that evaluators put into the first of their folds."""
    numbers = torch.arange(3 * n + 8, dtype=torch.float64)
    return numbers[torch.frac(numbers * 0.6180339887498949) < 0.5][:n].long()
