"""One contender of time_to_control.py, trained and measured in a process of its own.

Gets a `Task` as JSON and prints JSON.
"""

import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from _diffusers_baseline import Baseline, training
from _measuring import forward_flops, now
from _rivals import Inputs, rival_of
from jaxtyping import UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinydiffusion import config as config_file
from tinydiffusion import registry
from tinydiffusion.config import Config
from tinydiffusion.layers.precision import uses_bfloat16
from tinydiffusion.planning.calls import num_evaluations
from tinydiffusion.protocols import Batch
from tinydiffusion.run.train import _Run
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.survey import evaluation_prompts

ENDLESS = 10**12  # pictures: the time is what ends a run
PROBED_STEPS = 3


@dataclass(frozen=True)
class Task:
    """What is to be trained, for how long, and how it is measured."""

    name: Literal["ours", "baseline"]
    seed: int
    config: str
    overrides: list[str]
    minutes: float
    every: float  # seconds of training between two measurements
    num_images: int
    device: str
    baseline_precision: Literal["auto", "float32", "bfloat16"]
    baseline_gflop: float | None  # None: of our FLOPs
    baseline_batch: int  # pictures a step

    def load(self) -> Config:
        """The run: the config with this time, seed and device."""
        forced = {
            "seed": self.seed,
            "training.device": self.device,
            "training.max_minutes": self.minutes,
            "training.num_pictures": ENDLESS,
        }
        if self.name == "baseline":
            forced["training.batch_size"] = self.baseline_batch
        flags = [word for key, value in forced.items() for word in (f"--{key}", str(value))]
        config = config_file.load(self.config, [*self.overrides, *flags])
        if config.dataset["name"] != "scenes" or (config.validation or {}).get("split") != (
            "held_out"
        ):
            raise config_file.ConfigError(
                f"{self.config} must train on scenes and validate on their held_out split: "
                "the exact judge reads nothing else"
            )
        return config


class Snapshot(NamedTuple):
    """Weights on the way."""

    seconds: float
    pictures: int
    file: Path


class Snapshots:
    """Keeps the average weights every so many seconds of training; a hook of the trainer.

    The clock starts at the first call, just before the first step. What a snapshot itself takes
    (milliseconds) is counted.

    Args:
        folder: Of the files.
        every_seconds: Seconds between two snapshots.
    """

    def __init__(self, folder: Path, every_seconds: float) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        self.taken: list[Snapshot] = []
        self._start: float | None = None
        self._next = 0.0

    @property
    def seconds(self) -> float:
        """Since the first call."""
        return 0.0 if self._start is None else time.monotonic() - self._start

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.seconds >= self._next

    @property
    def every(self) -> int:
        """Pictures between two calls, for the trainer, which asks after every step."""
        return 1 if self.due else ENDLESS

    def __call__(self, pictures_seen: int, run_dir: Path, modules: nn.Module) -> dict[str, Any]:
        """Nothing to log."""
        del run_dir
        weights = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        self.take(pictures_seen, weights)
        return {}

    def take(self, pictures: int, weights: Mapping[str, Tensor]) -> None:
        """Keep these weights; of the first call, before any step, only the moment."""
        if self._start is None:
            self._start, self._next = time.monotonic(), self.every_seconds
            return
        file = self.folder / f"{len(self.taken):05d}.safetensors"
        save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, file)
        seconds = self.seconds
        self.taken.append(Snapshot(seconds, pictures, file))
        self._next = (seconds // self.every_seconds + 1) * self.every_seconds
        print(f"{seconds:.0f} s of training: {pictures} pictures", file=sys.stderr)


Generate = Callable[[list[str]], UInt8[Tensor, "N C H W"]]


class Trained(NamedTuple):
    """A contender after its training."""

    module: nn.Module  # takes the weights of a snapshot
    generate: Generate
    about: dict[str, Any]


def contend(task: Task) -> dict[str, Any]:
    """How the accuracy rose with the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(Path(folder), task.every)
        run = _Run(task.load(), Path(folder) / "run", ALONE)
        contender = (_ours if task.name == "ours" else _baseline)(run, task, snapshots)
        assert run.validation is not None
        prompts = evaluation_prompts(run.validation, task.num_images)
        contender.module.eval()
        curve = [_point(contender, snapshot, prompts) for snapshot in snapshots.taken]
    last = snapshots.taken[-1]
    return {
        "seed": task.seed,
        "curve": curve,
        "pictures_per_s": round(last.pictures / last.seconds, 2),
        "about": contender.about,
    }


def _ours(run: _Run, task: Task, snapshots: Snapshots) -> Trained:
    """Trained as `train.py` does it, checkpoints and logs included."""
    del task
    keep_freed_memory()
    about = {
        "forward_gflop": round(_flops(run) / 1e9, 4),
        "parameters": _num_parameters(run.objective.denoiser.network),
        "bfloat16": run.trainer.learner.bfloat16,
        **_sampling(run),
    }
    dataclasses.replace(run.trainer, hooks=[snapshots]).train()
    return Trained(run.objective, run.pipeline.generate, about)


def _baseline(run: _Run, task: Task, snapshots: Snapshots) -> Trained:
    """Trained by the loop of diffusers' examples, on the same pictures."""
    encoder, image_shape = run.objective.text_encoder, run.pipeline.image_shape
    inputs = Inputs.random(
        1, image_shape[-1], encoder.max_length, encoder.hidden_size, torch.device("meta")
    )
    gflop = task.baseline_gflop
    rival, channels = rival_of(_flops(run) if gflop is None else int(1e9 * gflop), inputs)
    torch.manual_seed(task.seed)
    model = Baseline(rival.build(), encoder, image_shape).to(run.device)
    bfloat16 = _takes_bfloat16(task, model, run)
    parameters, flops = rival.count(inputs)
    about = {
        "forward_gflop": round(flops / 1e9, 4),
        "parameters": parameters,
        "channels": channels,
        "bfloat16": bfloat16,
        **_sampling(run),
    }
    with closing(_batches(run)) as batches:
        for pictures, weights in training(model, batches, bfloat16=bfloat16):
            over = snapshots.seconds >= 60 * task.minutes
            if over or snapshots.due:
                snapshots.take(pictures, weights)
            if over:
                break
    return Trained(model, lambda p: model.generate(p, **_sampling(run), bfloat16=bfloat16), about)


def _sampling(run: _Run) -> dict[str, Any]:
    """How both make a picture: network evaluations, guided ones counting once, and guidance."""
    sampling = run.config.sampling
    return {
        "steps": num_evaluations(run.pipeline, sampling),
        "guidance_scale": sampling.guidance_scale,
    }


def _takes_bfloat16(task: Task, model: Baseline, run: _Run) -> bool:
    """Whether the baseline trains under bfloat16 autocast: where it is faster, unless told."""
    if task.baseline_precision != "auto":
        return task.baseline_precision == "bfloat16"
    return uses_bfloat16("auto", run.device) and (
        _step_seconds(model, run, bfloat16=True) < _step_seconds(model, run, bfloat16=False)
    )


def _step_seconds(model: Baseline, run: _Run, *, bfloat16: bool) -> float:
    with closing(_batches(run)) as batches:
        steps = training(copy.deepcopy(model), batches, bfloat16=bfloat16)
        for _ in range(2):  # the start, and a step that warms up
            next(steps)
        start = now(run.device)
        for _ in range(PROBED_STEPS):
            next(steps)
        return now(run.device) - start


def _batches(run: _Run) -> Any:
    """The endless batches, those that ours is trained on."""
    batches: Iterator[Batch] = run.trainer.batches.starting_at(
        0, pin_memory=run.device.type == "cuda"
    )
    return batches


def _flops(run: _Run) -> int:
    """Of our network, forward, for one picture."""
    network, encoder = run.objective.denoiser.network, run.objective.text_encoder
    sample = torch.zeros(1, *run.pipeline.image_shape, device=run.device)
    with torch.no_grad():
        text = encoder.encode([run.captions[0]])
    return forward_flops(lambda: network(sample, torch.zeros(1, device=run.device), text))


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _point(contender: Trained, snapshot: Snapshot, prompts: list[str]) -> dict[str, Any]:
    """The share of pictures in which everything is as asked, by the repository's judge."""
    loaded = contender.module.load_state_dict(load_file(snapshot.file), strict=False)
    assert not loaded.unexpected_keys
    judge = registry.create("evaluator", "scene_accuracy")
    image, ids = contender.generate(prompts), torch.arange(len(prompts))
    judge.update({"source": "generated", "id": ids, "image": image, "prompt": prompts})
    row = judge.compute()[0]
    print(f"{snapshot.seconds:.0f} s: accuracy {row.value:.3f}", file=sys.stderr)
    return {
        "seconds": round(snapshot.seconds, 2),
        "pictures": snapshot.pictures,
        "accuracy": row.value,
        "ci95": list(row.ci95),
        "n": row.n,
    }


if __name__ == "__main__":
    print(json.dumps(contend(Task(**json.loads(sys.argv[1])))))
