"""How long and how large evaluation is: prints one JSON.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_scale.py

Memory: 50,000 generated and 50,000 reference pictures of 32 px through `pixel_fd` and `fd` in the
features of a classifier that is trained first, in a process of its own. Time: the Fréchet distance
in 2048 features, against the eigenvalues of the product of the covariances, which is how
torch-fidelity computes it.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from tinydiffusion import registry
from tinydiffusion.metrics.statistics import (
    Moments,
    frechet_distance,
    frechet_distance_of_features,
)

NUM_PICTURES = 50_000
BATCH = 500
SIDE = 32
DIMENSIONS = 2048
SCENES = {"name": "scenes", "size": SIDE, "num_scenes": 2000}
METRICS = {"pixel_fd": {}, "fd": {"extractor": {"name": "classifier", "dataset": SCENES}}}


def peak_memory(num_pictures: int) -> dict[str, float]:
    """Seconds and peak memory in GB of this process, which has done nothing else."""
    evaluators = [registry.create("evaluator", name, **o) for name, o in METRICS.items()]
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for source in ("generated", "reference"):
        for first in range(0, num_pictures, BATCH):
            shape = (BATCH, 3, SIDE, SIDE)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            ids = torch.arange(first, first + BATCH)
            for evaluator in evaluators:
                evaluator.update(
                    {"source": source, "id": ids, "image": images, "prompt": [""] * BATCH}
                )
    values = {row.name: row.value for evaluator in evaluators for row in evaluator.compute()}
    return {
        "pictures_per_source": num_pictures,
        "seconds": time.perf_counter() - start,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        **values,
    }


def timed(compute: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds, which other processes do not lengthen, and the value."""
    start = time.process_time()
    value = compute()
    return time.process_time() - start, value


def inception_like(num_pictures: int, seed: int) -> torch.Tensor:
    """Features that are never negative and correlated, with variances over three decades."""
    mix = torch.randn(DIMENSIONS, DIMENSIONS, generator=torch.Generator().manual_seed(99))
    scale = torch.logspace(0, -1.5, DIMENSIONS)[:, None] / DIMENSIONS**0.5
    noise = torch.randn(num_pictures, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    return torch.relu(noise @ (scale * mix) + 0.1).double()


def frechet_times(num_pictures: int) -> dict[str, float]:
    """Seconds of our distance and of torch-fidelity's, and how far their values are apart."""
    sets = [inception_like(num_pictures, seed) for seed in (0, 1)]
    moments = [Moments.zeros(DIMENSIONS) for _ in sets]
    for part, features in zip(moments, sets, strict=True):
        part.add_(features)
    statistics = [{"mu": m.mean().numpy(), "sigma": m.covariance().numpy()} for m in moments]

    def ours() -> float:
        few = num_pictures < DIMENSIONS
        return frechet_distance_of_features(*sets) if few else frechet_distance(*moments)

    def theirs() -> float:
        result = fid_statistics_to_metric(*statistics, verbose=False)
        return result["frechet_inception_distance"]

    timed(lambda: torch.linalg.eigvalsh(moments[0].covariance()).sum().item())  # wakes LAPACK
    (mine, value), (other, expected) = min(timed(ours) for _ in range(3)), timed(theirs)
    return {
        "pictures": num_pictures,
        "ours_s": mine,
        "torch_fidelity_s": other,
        "ratio": mine / other,
        "relative_difference": abs(value / expected - 1),
    }


def main() -> None:
    """Measure, and print one JSON."""
    if len(sys.argv) > 1:
        print(json.dumps(peak_memory(int(sys.argv[1]))))
        return
    command = [sys.executable, __file__, str(NUM_PICTURES)]
    memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    times = [frechet_times(n) for n in (5000, 200)]
    broken = [f"peak of {memory['peak_gb']:.2f} GB"] if memory["peak_gb"] >= 2 else []
    broken += [f"{t['pictures']} pictures: {t}" for t in times if not _holds(t)]
    print(json.dumps({"memory": memory, "frechet_2048": times, "broken": broken}, indent=2))
    sys.exit(1 if broken else 0)


def _holds(times: dict[str, float]) -> bool:
    return times["ratio"] <= 1 / 4 and times["relative_difference"] < 1e-6


if __name__ == "__main__":
    main()
