"""Trains any objective; everything random comes from counters, so that a resumed run is exact."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinydiffusion.protocols import Batch, Hook
from tinydiffusion.runtime.clock import Stopwatch
from tinydiffusion.runtime.disk_wait import patiently
from tinydiffusion.runtime.durable import replace_file, sweep
from tinydiffusion.runtime.errors import NonFiniteError, RunError
from tinydiffusion.runtime.signals import StopRequest
from tinydiffusion.runtime.watchdog import Watchdog
from tinydiffusion.training.checkpoints.data_record import Fingerprints, save_record
from tinydiffusion.training.checkpoints.folder import Checkpoint, CheckpointFolder
from tinydiffusion.training.checkpoints.identity import Identity
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.hooks import HookCalls, crossed
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.log.rows import MAX_SKIPPED_IN_A_ROW, RunLog
from tinydiffusion.training.log.trackers import Tracker
from tinydiffusion.training.micro_batches import check_decomposable
from tinydiffusion.training.parallel.agreement import Agreement
from tinydiffusion.training.ranges import COUNTERS, check_ranges, check_state
from tinydiffusion.training.schedule import learning_rate_factor, training_progress

MAX_ROLLBACKS = 3


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
        learner: The objective that is minimised, with its optimizer.
        batches: What it is trained on.
        run_dir: Folder of the run: metrics.jsonl, checkpoints/, and what the hooks write.
        num_pictures: Length of the run in pictures seen.
        identity: JSON-able settings (model, batch, schedule ...) that must not change between a
            checkpoint and its resumption.
        fingerprints: Example id -> fingerprint of the data, which must not change either.
        about: JSON-able; kept in every checkpoint for who makes a model of it, never compared.
        max_seconds: Wall-clock budget over all resumes, hooks and saves included. The learning
            rate finishes its decay within it; the last hooks and the last save come on top.
        warmup_pictures: Length of the linear warm-up.
        decay_fraction: Share of the run over which the learning rate falls to 0, in [0, 1].
        accumulation: Batches per optimizer step.
        hooks: Called at the start, whenever a multiple of their `every` is crossed, and at the end.
        trackers: Where log rows go besides metrics.jsonl.
        checkpoint_every: Pictures between two checkpoints; the end of a run, for whatever reason
            but divergence, writes one too.
        keep_checkpoints: How many of the newest are kept.
        disk_wait_seconds: How long a checkpoint that cannot be written (a full disk, a file
            system out of reach) halts the run before it ends it.
        hang_seconds: Ends the process when no step is done for so long; None never does.
        rollback_on_spike: Go back to the last checkpoint when the loss leaves its usual range, and
            on from there with other pictures; at most MAX_ROLLBACKS times.
        log_every: Pictures between two log rows; a checkpoint comes with one too.

    Raises:
        ValueError: an argument out of its range.
    """

    learner: Learner
    batches: Batches
    _: KW_ONLY
    run_dir: Path
    num_pictures: int
    identity: Mapping[str, Any]
    fingerprints: Fingerprints = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    max_seconds: float | None = None
    warmup_pictures: int = 5_000
    decay_fraction: float = 0.2
    accumulation: int = 1
    hooks: Sequence[Hook] = ()
    trackers: Sequence[Tracker] = ()
    checkpoint_every: int = 50_000
    keep_checkpoints: int = 2
    disk_wait_seconds: float = 0.0
    hang_seconds: float | None = None
    rollback_on_spike: bool = False
    log_every: int = 1_000

    def __post_init__(self) -> None:
        check_ranges(**vars(self))
        self.processes = self.learner.processes
        check_decomposable(self.learner.module, self.accumulation, self.processes.count)
        folder = self.run_dir / "checkpoints"
        self.checkpoints = CheckpointFolder(folder, keep=self.keep_checkpoints)
        self._identity = Identity(self.identity, self.fingerprints, self.run_dir)
        self.pictures_seen = self.step = 0
        self.skipped_steps = self.loss_spikes = self.rollbacks = 0
        self.data_offset = 0  # pictures that rollbacks have passed over
        self._spikes = {"usual": [], "high": 0}
        self._hooks = HookCalls(self.hooks)
        self._clock = Stopwatch()
        self._continues = False
        self._learning_rate_factor = 0.0  # of the last step
        self._saved = True  # nothing learned yet
        self._agreed = Agreement(self.processes)

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]."""
        return training_progress(
            self.pictures_seen, self.num_pictures, self._agreed.seconds, self.max_seconds
        )

    def train(self) -> TrainResult:
        """Train to the end, or to the step in which a signal came, and return how it ended.

        Raises:
            ValueError: `run_dir` holds another run's checkpoints and `resume` was not called.
            DiskError: a checkpoint could not be written, not even after `disk_wait_seconds`; or
                there is no room for one, which is found out before the first step.
            NonFiniteError: ten steps in a row had a loss or gradient of NaN or infinity.
            RunError: the loss left its usual range once more after MAX_ROLLBACKS rollbacks.
        """
        self.processes.on_main(self._prepare_run_dir)
        first = self.pictures_seen
        cuda = [self.learner.device] if self.learner.device.type == "cuda" else []
        self._log = RunLog(
            self.trackers,
            self.run_dir,
            pictures_seen=first,
            skipped_steps=self.skipped_steps,
            loss_spikes=self.loss_spikes,
            continues=self._continues,
            processes=self.processes,
        )
        self._log.spikes.load(self._spikes)
        with (
            self._clock,
            torch.random.fork_rng(devices=cuda),
            StopRequest() as self._stop,
            Watchdog(self.hang_seconds if self.processes.is_main else None) as self._watchdog,
            self._log,
        ):
            self._continues = True
            self._agreed.stopped_by = None
            try:
                self._run()
            except BaseException:
                self._save_what_is_whole(alone=True)
                raise
            self._save_what_is_whole()
        seconds = self._log.stepping.seconds
        speed = (self.pictures_seen - first) / seconds if seconds else 0.0
        return TrainResult(self.pictures_seen, self._clock.seconds, speed, self._agreed.stopped_by)

    def _prepare_run_dir(self) -> None:
        if not self._continues and self.checkpoints.list():
            raise ValueError(
                f"{self.run_dir} already holds a run; resume it, or choose another folder"
            )
        self.checkpoints.try_out(self.learner.checkpoint_bytes())
        sweep(self.run_dir)
        save_record(self.run_dir, self.fingerprints)

    def resume(self, path: Path | None = None, allow_change: Sequence[str] = ()) -> list[str]:
        """Load a checkpoint, and list in lines what has changed since it was written.

        Args:
            path: One checkpoint folder; by default the newest undamaged one of the run.
            allow_change: Keys of the identity (or of their sections) that may differ; "data" for
                the fingerprints.

        Raises:
            CheckpointError: there is none, it is damaged, or it was written with another
                identity; the message names every setting that changed.
        """
        lines: list[str] = []

        def open_checked() -> Checkpoint:
            nonlocal path
            path, checkpoint = self.checkpoints.load(path)
            check_state(path, checkpoint.state)
            saved = checkpoint.state["identity"]
            lines.extend(self._identity.changes(path, saved, allow_change))
            return checkpoint

        self._go_to(open_checked)
        if self.processes.is_main:
            assert path is not None
            self.checkpoints.tidy(path)
        return lines

    def _go_to(self, read: Callable[[], Checkpoint]) -> None:
        """Take over the checkpoint that the main process reads."""
        opened: list[Checkpoint] = []

        def outline() -> Checkpoint:
            opened.append(read())
            return opened[0].outline()

        outlined = self.processes.on_main(outline)
        self.learner.load(opened[0] if opened else outlined)
        state = outlined.state
        for name in COUNTERS:
            setattr(self, name, state[name])
        self._spikes = state["spikes"]
        self._hooks.load(state["hooked_at"])
        self._clock = Stopwatch(state["seconds"])
        self._agreed.seconds = state["seconds"]
        self._continues = self._saved = True

    # ---- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._run_stretch():
            self._roll_back()
        self._write_row()
        if self._agreed.stopped_by is None:
            self._hooks.call(self.pictures_seen, self._call, final=True)

    def _run_stretch(self) -> bool:
        """Train until the end, a stop or a spike; return whether no rollback is needed."""
        pin_memory = self.learner.device.type == "cuda"
        batches = self.batches.starting_at(self._position, pin_memory=pin_memory)
        with closing(batches):
            self._hooks.call(self.pictures_seen, self._call)
            self._agree()
            while self._agreed.stopped_by is None and self.progress < 1:
                before = self.pictures_seen
                with self._log.stepping:
                    self._step(batches)
                self._agree()
                save = self._crossed(self.checkpoint_every, before) or self._agreed.take_save()
                if save or self._crossed(self.log_every, before):
                    spike = self._write_row()
                    if spike and self.rollback_on_spike and self._has_checkpoint():
                        return False
                if self._agreed.stopped_by is None:
                    self._hooks.call(self.pictures_seen, self._call)
                # What may be the beginning of a spike is nothing to go back to.
                if save and (self._log.spikes.calm or not self.rollback_on_spike):
                    self._save()
                self._agree()
        return True

    def _agree(self) -> None:
        self._agreed.reach(self._clock, self._stop)

    def _has_checkpoint(self) -> bool:
        return self.processes.agree(bool(self.checkpoints.list()))

    @property
    def _position(self) -> int:
        """Of the next picture in the data set's endless order, and of its noise."""
        return self.pictures_seen + self.data_offset

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
        scalars, called_off = self.learner.step(micro_batches, factor)
        self._log.add(scalars, called_off)
        self.pictures_seen = seen_after
        self.step += 1
        self._saved = False
        self._watchdog.beat()

    def _roll_back(self) -> None:
        """Take over the last checkpoint and pass over the pictures that were seen after it."""
        self._saved = True  # what the spike has left is not kept
        if self.rollbacks == MAX_ROLLBACKS:
            raise RunError(
                f"the loss left its usual range again after {MAX_ROLLBACKS} rollbacks; start again "
                "with a lower learning rate or gradient_clip"
            )
        spiked_at, clock = self._position, self._clock
        counts = self.loss_spikes, self.rollbacks + 1
        self._go_to(lambda: self.checkpoints.load()[1])
        self._clock = clock  # time does not go back
        self.loss_spikes, self.rollbacks = counts
        self.data_offset = spiked_at - self.pictures_seen
        self._log.spikes.load(self._spikes)
        self._log.go_back(self.pictures_seen)
        self._log.track({"pictures_seen": self.pictures_seen, "rollbacks": self.rollbacks})
        self._save()  # with the offset: a kill must not bring the same pictures back

    def _crossed(self, every: int, before: int) -> bool:
        return crossed(every, before, self.pictures_seen)

    def _call(self, hook: Hook) -> None:
        """Have the main process run a hook and log what it reports; the others wait."""
        self._watchdog.beat()
        with self.learner.averaged() as modules:
            scalars = self.processes.on_main(
                lambda: hook(self.pictures_seen, self.run_dir, modules)
            )
        self._log.track({"pictures_seen": self.pictures_seen, **scalars})
        self._saved = self.step == 0

    def _write_row(self) -> bool:
        counters = {
            "progress": self.progress,
            "seconds": self._clock.seconds,
            "learning_rate": self.learner.learning_rate * self._learning_rate_factor,
        }
        if self.learner.device.type == "cuda":
            counters["peak_memory_gib"] = (
                torch.cuda.max_memory_allocated(self.learner.device) / 2**30
            )
        try:
            spike = self._log.write_row(self.pictures_seen, counters)
        except NonFiniteError:
            self.processes.on_main(self._write_suspects)
            raise
        self.skipped_steps, self.loss_spikes = self._log.skipped_steps, self._log.loss_spikes
        return spike

    def _write_suspects(self) -> None:
        """Leave in `non_finite.json` which pictures the last steps had, and from which position."""
        size = self.batches.batch_size * self.accumulation
        first = max(0, self._position - MAX_SKIPPED_IN_A_ROW * size)
        content = {"first_position": first, "ids": self.batches.ids(first, self._position)}
        replace_file(self.run_dir / "non_finite.json", json.dumps(content).encode())

    # ---- checkpoints -------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint; wait for the disk, up to `disk_wait_seconds`, where it fails.

        Raises:
            DiskError: it failed to the end, or a signal asked for the end meanwhile.
        """
        checkpoint = self.learner.checkpoint(self._state())
        self._saved = True  # or not to be saved: a disk that failed is not asked once more
        self.processes.on_main(lambda: self._write(checkpoint))

    def _write(self, checkpoint: Checkpoint) -> None:
        patiently(
            lambda: self.checkpoints.save(checkpoint, pictures_seen=self.pictures_seen),
            seconds=self.disk_wait_seconds,
            interrupted=self._is_interrupted,
        )

    def _is_interrupted(self) -> bool:
        self._watchdog.beat()  # a disk that is waited for is no hang
        return self._stop.received is not None

    def _state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "spikes": self._log.spikes.state(),
            "seconds": self._clock.seconds,
            "hooked_at": self._hooks.called_at,
            "identity": self._identity.values,
            "about": dict(self.about),
        }

    def _save_what_is_whole(self, *, alone: bool = False) -> None:
        """Save what has been learned since the last checkpoint.

        Args:
            alone: An error has ended the run: nothing can be asked of the other processes.
        """
        if self._saved or self._log.diverged or self.learner.updating:
            return
        if not alone or self.processes.count == 1:
            self._save()
        elif self.processes.is_main and self.learner.strategy == "ddp":
            self._write(self.learner.checkpoint(self._state()))
