"""`tinydiffusion train`: data in, model folder and report out."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import nn

from tinydiffusion import config as config_file
from tinydiffusion.abilities import Captioned, EncodingAhead, Selective
from tinydiffusion.build import (
    build_evaluators,
    build_learner,
    build_objective,
    build_training,
    build_validation,
    decide_compilation,
    pick_device,
)
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.evaluation.on_the_way import Evaluation
from tinydiffusion.evaluation.report.illustrations import labelled
from tinydiffusion.evaluation.validation_loss import ValidationLoss
from tinydiffusion.model_folder.finding import MODEL
from tinydiffusion.pictures.grid import save_grid
from tinydiffusion.pictures.usable import first_usable
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.planning.plan import DEVICES, plan
from tinydiffusion.planning.short_runs import short_run_remarks, warm_up_remark
from tinydiffusion.planning.table import print_plan
from tinydiffusion.protocols import Dataset
from tinydiffusion.run import folder
from tinydiffusion.run.checks import check_config, check_fits, check_same_data
from tinydiffusion.run.export import about_model
from tinydiffusion.run.folder import GRID, REPORT, check_run_folder
from tinydiffusion.run.identity import identity_of
from tinydiffusion.run.report import report_run
from tinydiffusion.run.start import starting_model
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.compilation import compile_trained, naming_compile_errors
from tinydiffusion.runtime.durable import naming_disk_errors
from tinydiffusion.runtime.memory import naming_memory
from tinydiffusion.runtime.outputs import held
from tinydiffusion.runtime.processes import Processes, joined, naming_lost_processes
from tinydiffusion.sampling.grids import SampleGrid, grid_prompts
from tinydiffusion.survey import learn_words, survey
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.log.console import console_tracker
from tinydiffusion.training.log.trackers import TensorBoardTracker
from tinydiffusion.training.micro_batches import advice, parts_of_batch
from tinydiffusion.training.trainer import Trainer, TrainResult

METRIC_FAILED = 1
EXIT_CODES = {None: 0, "SIGINT": 130, "SIGTERM": 143}
FIXED = ("network", "text_encoder")
"""Sections that no resumed run may change: the weights would not fit."""

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def train(
    config: Config,
    run_dir: Path,
    *,
    resume: Path | None = None,
    allow_change: Sequence[str] = (),
    dry_run: bool = False,
    devices: Sequence[int] = DEVICES,
    json_file: Path | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> int:
    """Train a model by a config, and save, measure and report it; or estimate the cost.

    A run with checkpoints in its folder continues from the newest, or from `resume`. The notes are
    remarks for the user on how the config was read.

    Returns:
        The exit code: 0 at the end of the run, 1 where a metric failed, 128 + the signal's number
        where a signal stopped it.
    """
    started = time.monotonic()
    if wrong := [key for key in allow_change if key.partition(".")[0] in FIXED]:
        raise ConfigError(
            f"--allow-change {wrong[0]}: another network or text encoder cannot take over these "
            "weights; train it in another --run-dir"
        )
    if not overwrite:
        check_run_folder(run_dir, config)
    keep_freed_memory()
    with joined(config.training.device) as processes, naming_lost_processes():
        console.quiet = not processes.is_main
        if not dry_run:
            processes.on_main(lambda: folder.check_run_owner(run_dir, overwrite=overwrite))
        run = _Run(config, run_dir, processes)
        run.describe(notes)
        if dry_run:
            return run.estimate(devices, time.monotonic() - started, json_file)
        needed = run.trainer.learner.checkpoint_bytes()
        with ExitStack() as stack, naming_memory(run.device), naming_disk_errors(run_dir, needed):
            processes.on_main(lambda: _hold(run_dir, stack, overwrite=overwrite))
            return run.go(started, resume, allow_change)


class _Run:
    """The components of one run, built and checked before anything is computed."""

    def __init__(self, config: Config, run_dir: Path, processes: Processes) -> None:
        self.config, self.run_dir, self.processes = config, run_dir, processes
        with processes.together():
            fingerprints = self._read_data()
        check_same_data(processes, fingerprints)
        # Where one process cannot compile, none does: all must learn the same.
        self.compilation = min(processes.gather(self.compilation))
        vocabulary = processes.on_main(lambda: folder.earlier_vocabulary(run_dir))
        with processes.together(), naming_memory(self.device):
            self._build(vocabulary)
        self.trainer = self._trainer(fingerprints)

    def _read_data(self) -> dict[str, str]:
        """Check the settings, read all data, and return the fingerprints of the training set."""
        config = self.config
        check_config(config)
        self.device = pick_device(config.training.device)
        self.compilation = decide_compilation(config, self.device)
        self.evaluators = build_evaluators(config.evaluation.metrics, config.evaluation.options)
        with self.processes.one_by_one():
            self.dataset = build_training(config)
            self.validation = build_validation(config)
        self.reference = self._reference()
        self.captions, fingerprints = survey(self.dataset)
        self.prompts, self.prompts_origin = grid_prompts(
            config.sampling, self.captions, self.validation
        )
        return fingerprints

    def _build(self, vocabulary: dict[str, Any] | None) -> None:
        image = first_usable(self.dataset)["image"]
        start = starting_model(self.config)
        self.start_digest = None if start is None else start.digest
        self.objective: Any = build_objective(
            self.config,
            self.captions,
            len(image),
            vocabulary if start is None else start.text_encoder.config(),
            None if start is None else (start.network, start.text_encoder),
        ).to(self.device)
        learn_words(self.objective.text_encoder, self.dataset, self.captions)
        self.pipeline = TextToImage(
            self.objective.denoiser.network,
            self.objective.text_encoder,
            self.config,
            image.shape,
            precision=self.config.training.precision,
        )
        self.pipeline.prepare(self.config.sampling)  # wrong settings raise here
        check_fits(self.objective, self.evaluators, self.dataset, self.reference, self.device)
        if self.compilation.compiles:
            compile_trained(self.objective.denoiser.network, self.objective.text_encoder)

    def _reference(self) -> Dataset:
        """Return the set whose captions are the evaluation's prompts."""
        evaluation = self.config.evaluation
        if evaluation.reference == "validation" and self.validation is not None:
            return self.validation
        return self.dataset

    def go(self, started: float, resume: Path | None, allow_change: Sequence[str]) -> int:
        """Train from where the run stands, measure and report, and return the exit code."""
        trainer = self.trainer
        begun = self.processes.on_main(lambda: folder.has_checkpoints(self.run_dir))
        missing = self.processes.on_main(lambda: folder.missing_results(self.run_dir))
        if resume is not None or begun:
            for change in trainer.resume(resume, allow_change):
                console.print(f"changed: {change}")
            console.print(f"resuming from picture {trainer.pictures_seen}")
        if trainer.progress >= 1 and REPORT not in missing:
            with trainer.learner.averaged():
                self.processes.on_main(lambda: self._complete(missing))
            return 0
        self.processes.on_main(self._begin)
        self._encode_ahead()
        with naming_compile_errors():
            result = trainer.train()
        if result.stopped_by is not None:
            console.print(f"stopped by {result.stopped_by}; the same command goes on")
            return EXIT_CODES[result.stopped_by]
        short = result.pictures_seen < self.config.training.num_pictures
        if short and (remark := warm_up_remark(self.config.training, result.pictures_seen)):
            console.print(f"warning: {remark}")
        with trainer.learner.averaged():
            return self.processes.on_main(lambda: self.finish(result, started))

    def _complete(self, missing: Sequence[str]) -> None:
        """Make the missing results of a finished run again, from its last checkpoint."""
        if not missing:
            console.print(f"{self.run_dir} is complete; another --run-dir trains anew")
            return
        if MODEL in missing:
            self.pipeline.save_pretrained(self.run_dir / MODEL)
        if GRID in missing:
            self._save_grid(self.prompts)
        names = " and ".join(str(self.run_dir / name) for name in missing)
        console.print(f"the run is complete; {names} made again from its last checkpoint")

    def _encode_ahead(self) -> None:
        """Encode every caption once with a frozen text encoder, each process a share of them."""
        encoder = self.objective.text_encoder
        if isinstance(encoder, EncodingAhead):
            share = (self.processes.rank, self.processes.count)
            with self.processes.together(), Progress(console=console) as bar:
                task = bar.add_task("captions")
                encoder.encode_ahead(
                    self._captions_ahead(),
                    share,
                    lambda done, total: bar.update(task, completed=done, total=total),
                )

    def _begin(self) -> None:
        (self.run_dir / REPORT).unlink(missing_ok=True)  # that of a shorter run
        if (edited := folder.save_config(self.run_dir, self.config)) is not None:
            console.print(edited)
        folder.save_vocabulary(self.run_dir, self.objective.text_encoder)

    def describe(self, notes: Sequence[str] = ()) -> None:
        """Print the settings, the data, the size of the model, and what has no effect."""
        console.print(config_file.to_yaml(self.config).decode().rstrip())
        for name, dataset in (("training", self.dataset), ("validation", self.validation)):
            if dataset is None:
                continue
            console.print(f"{name} set: {len(dataset)} pictures of {_size(dataset)}")
            if isinstance(dataset, Selective) and (skipped := dataset.describe_skipped()):
                console.print(f"  skipped: {skipped}")
        encoder = self.objective.text_encoder
        console.print(f"grids: {self.prompts_origin}")
        texts = {"captions": self.captions, "sampling.prompts": self.config.sampling.prompts}
        for name, captions in texts.items():
            if cut := encoder.tokenize(captions).num_truncated:
                limit = encoder.max_length
                console.print(f"{cut} of {len(captions)} {name} are cut to {limit} tokens")
        precision = "bfloat16" if self.trainer.learner.bfloat16 else "float32"
        console.print(
            f"network {_count(self.objective.denoiser.network)}, text encoder {_count(encoder)}; "
            f"{precision} on {self.device}"
        )
        console.print(self.compilation.reason)
        if self.processes.count > 1:
            parts = self.trainer.accumulation * self.processes.count
            each = self.config.training.batch_size // parts
            console.print(
                f"{self.processes.count} processes ({self.config.training.strategy}), "
                f"{each} pictures each at a time"
            )
        for line in [*notes, *short_run_remarks(self.config)]:
            console.print(f"warning: {line}")

    def estimate(
        self, devices: Sequence[int], seconds_before: float, json_file: Path | None
    ) -> int:
        """Print what the run will cost, and return 0; the trainer is used up."""
        if self.processes.count > 1:
            raise ConfigError("--dry-run tells of several devices by itself: start it without any")
        cost = plan(
            self.trainer,
            self.pipeline,
            self.reference,
            captions=self._captions_ahead(),
            devices=devices,
            seconds_before=seconds_before,
        )
        print_plan(cost)
        if json_file is not None:
            cost.save(json_file)
        return 0

    def _captions_ahead(self) -> Sequence[str]:
        """List the captions to encode ahead: all of the data set; empty for other text encoders."""
        if not isinstance(self.objective.text_encoder, EncodingAhead):
            return ()
        dataset = self.dataset
        return list(dataset.captions()) if isinstance(dataset, Captioned) else self.captions

    def finish(self, result: TrainResult, started: float) -> int:
        """Save, sample, measure and report the model; return 1 where a metric failed, else 0."""
        self.pipeline.save_pretrained(self.run_dir / MODEL)
        grid = self._save_grid(self.prompts)
        rows = report_run(
            self.run_dir,
            self.pipeline,
            self.evaluators,
            self.reference,
            self.dataset,
            result=result,
            grid=grid,
            started=started,
            console=console,
        )
        console.print(f"grid: {self.run_dir / GRID}\nmodel: {self.run_dir / MODEL}")
        console.print(f'next: python sample.py {self.run_dir / MODEL} "{self.prompts[0]}"')
        return METRIC_FAILED if any("error" in row for row in rows) else 0

    def _save_grid(self, prompts: list[str]) -> list[dict[str, str]]:
        """Draw `grid.png` and return its pictures with their prompts, as a report holds them."""
        seed = self.config.seed
        images = self.pipeline.generate(prompts, seed=seed)
        save_grid(self.run_dir / GRID, images, prompts, seed=seed)
        return labelled(images, prompts)

    def _trainer(self, fingerprints: dict[str, str]) -> Trainer:
        training, processes = self.config.training, self.processes
        if wrong := advice(training.batch_size, training.accumulation, processes.count):
            raise ConfigError(
                f"training.batch_size {training.batch_size} cannot be shared equally by "
                f"{processes.count} processes; {wrong}"
            )
        parts = parts_of_batch(training.accumulation, processes.count)
        batches = Batches(
            self.dataset,
            training.batch_size // parts,
            self.config.seed,
            num_workers=training.num_workers,
            share=(processes.rank, processes.count),
        )
        seconds = None if training.max_minutes is None else 60 * training.max_minutes
        trackers = [console_tracker(training.num_pictures, seconds)]
        if training.tensorboard:
            trackers.append(TensorBoardTracker())
        shared = (
            "num_pictures", "warmup_pictures", "decay_fraction", "checkpoint_every",
            "keep_checkpoints", "rollback_on_spike", "log_every",
        )  # fmt: skip
        return Trainer(
            build_learner(self.config, self.objective, processes),
            batches,
            accumulation=parts,
            run_dir=self.run_dir,
            identity={**identity_of(self.config, self.compilation), "init_from": self.start_digest},
            fingerprints=fingerprints,
            about=about_model(self.pipeline),
            disk_wait_seconds=60 * training.disk_wait_minutes,
            hang_seconds=None if training.hang_minutes is None else 60 * training.hang_minutes,
            max_seconds=seconds,
            hooks=self._hooks(),
            trackers=trackers,
            **{name: getattr(training, name) for name in shared},
        )

    def _hooks(self) -> list[Any]:
        sampling = self.config.sampling
        hooks: list[Any] = [
            SampleGrid(self.pipeline, self.prompts, every=sampling.every, seed=self.config.seed)
        ]
        if self.validation is not None:
            validation = ValidationLoss(
                self.objective,
                self.validation,
                every=sampling.every,
                device=self.device,
                bfloat16=self.pipeline.bfloat16,
            )
            hooks.append(validation)
        evaluation = self.config.evaluation
        if evaluation.every is not None:
            on_the_way = Evaluation(
                self.pipeline,
                self.reference,
                self.dataset,
                metrics=evaluation.metrics,
                options=evaluation.options,
                every=evaluation.every,
                num_images=evaluation.every_num_images,
                keep_best=evaluation.keep_best,
                seed=self.config.seed,
            )
            hooks.append(on_the_way)
        return hooks


def _hold(run_dir: Path, stack: ExitStack, *, overwrite: bool) -> None:
    stack.enter_context(held(run_dir, "train", overwrite=overwrite))


def _size(dataset: Dataset) -> str:
    _, height, width = first_usable(dataset)["image"].shape
    return f"{width}x{height}"


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
