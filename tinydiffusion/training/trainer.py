"""Trains any objective; everything random comes from counters, so that a resumed run is exact."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydiffusion.protocols import Batch, Hook, Objective
from tinydiffusion.training.checkpoint import CheckpointError, CheckpointFolder, difference
from tinydiffusion.training.clock import Stopwatch
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.precision import Precision
from tinydiffusion.training.run_log import RunLog
from tinydiffusion.training.scheduler import learning_rate_factor, training_progress
from tinydiffusion.training.signals import StopRequest
from tinydiffusion.training.trackers import Tracker


class TrainResult(NamedTuple):
    """How a call of `Trainer.train` ended."""

    pictures_seen: int  # over all calls and resumes
    seconds: float  # wall-clock over all calls and resumes, hooks and saves included
    pictures_per_second: float  # of this call's steps alone
    stopped_by: str | None  # "SIGTERM" or "SIGINT" where a signal asked for the end


@dataclass(eq=False)
class Trainer:
    """Minimises an objective over batches, and can be stopped and resumed at any step.

    Noise, dropout, captions and order are functions of (seed, pictures seen). On the CPU of one
    machine a resumed run therefore ends in the same bits as an unbroken one, unless a time budget
    steers its learning rate. The trainer leaves the train/eval mode of the modules to the
    objective, except that hooks see them in eval mode.

    Args:
        objective: What is minimised; an `nn.Module`, already on its device.
        batches: What it is trained on.
        run_dir: Folder of the run: metrics.jsonl, checkpoints/, and what the hooks write.
        num_pictures: Length of the run in pictures seen.
        identity: JSON-able settings (model, data fingerprint, batch, schedule ...) that must not
            change between a checkpoint and its resumption.
        max_seconds: Wall-clock budget over all resumes, hooks and saves included. The learning
            rate finishes its decay within it; the last hooks and the last save come on top.
        learning_rate: AdamW's at its highest.
        betas: Of AdamW.
        weight_decay: For tensors of two or more dimensions.
        muon_modules: Names of modules of the objective whose linear layers' weights Muon trains,
            see `muon.GuardedMuon`; "" is the whole objective.
        muon_learning_rate: Muon's at its highest; it rises and falls with AdamW's.
        warmup_pictures: Length of the linear warm-up.
        decay_fraction: Share of the run over which the learning rate falls to 0, in [0, 1].
        gradient_clip: Largest norm of the gradient.
        accumulation: Batches per optimizer step.
        ema_max_decay: See `ema.ema_decay`.
        ema_power: See `ema.ema_decay`.
        precision: Of the forward pass, see `precision.uses_bfloat16`.
        seed: Of noise and dropout; the batches have their own.
        hooks: Called at the start, whenever a multiple of their `every` is crossed, and at the end.
        trackers: Where log rows go besides metrics.jsonl.
        checkpoint_every: Pictures between two checkpoints; the end of a run, for whatever reason
            but divergence, writes one too.
        keep_checkpoints: How many of the newest are kept.
        log_every: Pictures between two log rows; a checkpoint comes with one too.

    Raises:
        ValueError: an argument out of its range, or an objective with nothing to train.
    """

    objective: Objective
    batches: Batches
    _: KW_ONLY
    run_dir: Path
    num_pictures: int
    identity: Mapping[str, Any]
    max_seconds: float | None = None
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    muon_modules: Sequence[str] = ()
    muon_learning_rate: float = 0.01
    warmup_pictures: int = 5_000
    decay_fraction: float = 0.2
    gradient_clip: float = 1.0
    accumulation: int = 1
    ema_max_decay: float = 0.9999
    ema_power: float = 0.75
    precision: Precision = "auto"
    seed: int = 0
    hooks: Sequence[Hook] = ()
    trackers: Sequence[Tracker] = ()
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2
    log_every: int = 1_000

    def __post_init__(self) -> None:
        self._check_ranges()
        self.learner = Learner(
            self.objective,
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            muon_modules=self.muon_modules,
            muon_learning_rate=self.muon_learning_rate,
            gradient_clip=self.gradient_clip,
            ema_max_decay=self.ema_max_decay,
            ema_power=self.ema_power,
            precision=self.precision,
            seed=self.seed,
        )
        folder = self.run_dir / "checkpoints"
        self.checkpoints = CheckpointFolder(folder, keep=self.keep_checkpoints)
        self._identity = json.loads(json.dumps(self.identity))
        self.pictures_seen = self.step = self.skipped_steps = 0
        self._hooked_at = [-1] * len(self.hooks)  # pictures seen when each hook last ran
        self._clock = Stopwatch()
        self._continues = False
        self._learning_rate_factor = 0.0  # of the last step
        self._saved = True  # nothing learned yet

    @property
    def progress(self) -> float:
        """How much of the run is over, in [0, 1]."""
        return training_progress(
            self.pictures_seen, self.num_pictures, self._clock.seconds, self.max_seconds
        )

    def train(self) -> TrainResult:
        """How training to the end, or to the step in which a signal came, has gone.

        Raises:
            ValueError: `run_dir` holds another run's checkpoints and `resume` was not called.
            NonFiniteError: ten steps in a row had a loss or gradient of NaN or infinity.
        """
        if not self._continues and self.checkpoints.list():
            raise ValueError(
                f"{self.run_dir} already holds a run; resume it, or choose another folder"
            )
        first = self.pictures_seen
        cuda = [self.learner.device] if self.learner.device.type == "cuda" else []
        self._log = RunLog(
            self.trackers,
            self.run_dir,
            pictures_seen=first,
            skipped_steps=self.skipped_steps,
            continues=self._continues,
        )
        with self._clock, torch.random.fork_rng(devices=cuda), StopRequest() as stop, self._log:
            self._continues = True
            try:
                self._run(stop)
            finally:  # whatever ends the run
                self._save_unless_diverged()
        seconds = self._log.stepping.seconds
        speed = (self.pictures_seen - first) / seconds if seconds else 0.0
        return TrainResult(self.pictures_seen, self._clock.seconds, speed, stop.received)

    def resume(self, path: Path | None = None) -> int:
        """Pictures seen by the checkpoint that the next `train()` goes on from.

        Args:
            path: One checkpoint folder; by default the newest undamaged one of the run.

        Raises:
            CheckpointError: there is none, it is damaged, or it was written with another
                identity; the message names every setting that changed.
        """
        path, checkpoint = self.checkpoints.load(path)
        state = checkpoint.state
        changed = difference(state["identity"], self._identity)
        if changed:
            first = f"cannot resume {path}; these settings changed since it was written:"
            raise CheckpointError("\n  ".join([first, *changed]))
        self.learner.load(checkpoint)
        self.pictures_seen, self.step = state["pictures_seen"], state["step"]
        self.skipped_steps = state["skipped_steps"]
        if len(state["hooked_at"]) == len(self.hooks):
            self._hooked_at = state["hooked_at"]
        self._clock = Stopwatch(state["seconds"])
        self._continues = self._saved = True
        return self.pictures_seen

    # ---- the loop ----------------------------------------------------------------------------

    def _run(self, stop: StopRequest) -> None:
        pin_memory = self.learner.device.type == "cuda"
        batches = self.batches.starting_at(self.pictures_seen, pin_memory=pin_memory)
        with closing(batches):
            self._run_hooks()
            while self.progress < 1 and stop.received is None:
                before = self.pictures_seen
                with self._log.stepping:
                    self._step(batches)
                save = self._crossed(self.checkpoint_every, before)
                if save or self._crossed(self.log_every, before):
                    self._write_row()
                if stop.received is None:
                    self._run_hooks()
                if save:
                    self._save()
        self._write_row()
        if stop.received is None:
            self._run_hooks(final=True)

    def _step(self, batches: Iterator[Batch]) -> None:
        with self._log.waiting:
            micro_batches = [next(batches) for _ in range(self.accumulation)]
        seen_after = self.pictures_seen + self.batches.batch_size * self.accumulation
        factor = learning_rate_factor(
            seen_after,
            self.progress,
            warmup_pictures=self.warmup_pictures,
            decay_fraction=self.decay_fraction,
        )
        self._learning_rate_factor = factor
        scalars, called_off = self.learner.step(micro_batches, self.pictures_seen, factor)
        self._log.add(scalars, called_off)
        self.pictures_seen = seen_after
        self.step += 1
        self._saved = False

    def _crossed(self, every: int, before: int) -> bool:
        return self.pictures_seen // every > before // every

    def _run_hooks(self, *, final: bool = False) -> None:
        for i, hook in enumerate(self.hooks):
            last = self._hooked_at[i]
            if self._crossed(hook.every, last) or (final and last < self.pictures_seen):
                with self.learner.averaged() as modules:
                    scalars = hook(self.pictures_seen, self.run_dir, modules)
                self._log.track({"pictures_seen": self.pictures_seen, **scalars})
                self._hooked_at[i] = self.pictures_seen
                self._saved = self.step == 0

    def _write_row(self) -> None:
        counters = {
            "progress": self.progress,
            "seconds": self._clock.seconds,
            "learning_rate": self.learning_rate * self._learning_rate_factor,
        }
        if self.learner.device.type == "cuda":
            counters["peak_memory_gib"] = (
                torch.cuda.max_memory_allocated(self.learner.device) / 2**30
            )
        self._log.write_row(self.pictures_seen, counters)
        self.skipped_steps = self._log.skipped_steps

    # ---- checkpoints -------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "pictures_seen": self.pictures_seen,
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "seconds": self._clock.seconds,
            "hooked_at": self._hooked_at,
            "identity": self._identity,
        }
        self.checkpoints.save(self.learner.checkpoint(state), pictures_seen=self.pictures_seen)
        self._saved = True

    def _save_unless_diverged(self) -> None:
        if not (self._saved or self._log.diverged):
            self._save()

    def _check_ranges(self) -> None:
        at_least_1 = ("num_pictures", "accumulation", "checkpoint_every", "log_every")
        positive = ("learning_rate", "muon_learning_rate", "gradient_clip")
        not_negative = ("warmup_pictures", "weight_decay")
        for names, allowed, holds in (
            (at_least_1, "at least 1", lambda value: value >= 1),
            (positive, "positive", lambda value: value > 0),
            (not_negative, "0 or more", lambda value: value >= 0),
            (("decay_fraction",), "in [0, 1]", lambda value: 0 <= value <= 1),
            (("max_seconds",), "positive, or None", lambda value: value is None or value > 0),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")
