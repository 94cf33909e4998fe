"""The trainer learns, resumes to the bit, survives bad numbers and keeps to its budget."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_toys import Autoencoder, FlippingPictures, assert_same_bits, learned, trainer

from tinydiffusion.layers.precision import uses_bfloat16
from tinydiffusion.runtime import clock
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.training.checkpoints.folder import CheckpointError


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class StopAfter:
    """A hook that sends this process a signal at a position."""

    every = 4

    def __init__(self, position, number=signal.SIGTERM):
        self.position, self.number = position, number

    def __call__(self, pictures_seen, run_dir, modules):
        if pictures_seen == self.position:
            os.kill(os.getpid(), self.number)
        return {}


class Recorder:
    """A hook that notes what it saw and meddles with the global random state."""

    def __init__(self, every=60):
        self.every = every
        self.seen = []

    def __call__(self, pictures_seen, run_dir, modules):
        torch.manual_seed(123)
        torch.rand(7)
        weight = modules.encode.weight
        self.seen.append((pictures_seen, modules.training, torch.is_grad_enabled(), weight.clone()))
        return {"hook/value": 1.5}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("unbroken"))
    run.train()
    return learned(run)


def test_loss_falls_and_rows_say_so(tmp_path):
    run = trainer(tmp_path, num_pictures=800)
    result = run.train()
    assert result.pictures_seen == 800
    assert result.stopped_by is None
    assert result.pictures_per_second > 0
    logged = rows(tmp_path)
    assert [row["pictures_seen"] for row in logged] == sorted(
        {*range(16, 801, 16), *range(40, 801, 40)}
    )
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert logged[-1]["mse"] == pytest.approx(logged[-1]["loss"])
    assert logged[-1]["progress"] == 1
    assert logged[0]["learning_rate"] == pytest.approx(1e-2)  # after 16 warm-up pictures


@pytest.mark.parametrize("stops", [[4], [36, 40], [92, 100, 156]])
def test_stopped_and_resumed_equals_unbroken(tmp_path, unbroken, stops):
    for stop in stops:
        run = trainer(tmp_path, hooks=[StopAfter(stop)])
        if run.checkpoints.list():
            run.resume()
        assert run.train().stopped_by == "SIGTERM"
        assert run.pictures_seen == stop
    run = trainer(tmp_path)
    seconds = run.checkpoints.load()[1].state["seconds"]
    run.resume()
    result = run.train()
    assert_same_bits(learned(run), unbroken)
    assert run.step == 40
    assert result.seconds > seconds  # counters add up
    positions = [row["pictures_seen"] for row in rows(tmp_path)]
    assert positions == sorted(positions)


def test_resume_from_an_older_checkpoint_equals_unbroken(tmp_path, unbroken):
    trainer(tmp_path).train()
    first = [(row["pictures_seen"], row["loss"], row["learning_rate"]) for row in rows(tmp_path)]
    run = trainer(tmp_path)
    run.resume(run.checkpoints.list()[0])
    assert run.pictures_seen == 120
    run.train()
    assert_same_bits(learned(run), unbroken)
    # the rows beyond picture 120 were cut before they were written again
    again = [(row["pictures_seen"], row["loss"], row["learning_rate"]) for row in rows(tmp_path)]
    assert again == first
    assert len(first) == 12


SCRIPT = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from training_toys import Autoencoder, trainer

class Slow(Autoencoder):
    def loss(self, batch, generators):
        print("training", flush=True)
        time.sleep(0.02)
        return super().loss(batch, generators)

torch.set_num_threads(int(sys.argv[3]))  # sums over threads depend on their number
run = trainer(Path(sys.argv[1]), objective=Slow())
sys.exit({None: 0, "SIGTERM": 143}[run.train().stopped_by])
"""


def test_real_sigterm_in_a_real_process_loses_nothing(tmp_path, unbroken):
    arguments = [tmp_path, Path(__file__).parents[1] / "toys", torch.get_num_threads()]
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    time.sleep(0.5 * random.random())
    process.terminate()
    assert process.wait(timeout=30) == 143
    process.stdout.close()
    run = trainer(tmp_path)
    assert run.resume() == []  # nothing has changed
    assert 0 < run.pictures_seen < 160
    run.train()
    assert_same_bits(learned(run), unbroken)


def test_hooks_see_the_average_in_eval_mode_and_change_nothing(tmp_path, unbroken):
    hook = Recorder()
    run = trainer(tmp_path, hooks=[hook])
    before = torch.random.get_rng_state()
    run.train()
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same_bits(learned(run), unbroken)
    assert [seen[0] for seen in hook.seen] == [0, 60, 120, 160]
    assert not any(training or grad for _, training, grad, _ in hook.seen)
    assert torch.equal(hook.seen[-1][3], run.learner.ema.weights["encode.weight"])
    assert run.learner.module.training
    assert [r["pictures_seen"] for r in rows(tmp_path) if "hook/value" in r] == [0, 60, 120, 160]


class StopInStep(Autoencoder):
    """Gets a signal while it computes the loss of one step."""

    def __init__(self, step):
        super().__init__()
        self.steps_left = step

    def loss(self, batch, generators):
        self.steps_left -= 1
        if self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().loss(batch, generators)


def test_a_stop_finishes_the_step_and_leaves_the_due_hook_to_the_resumed_run(tmp_path, unbroken):
    early, late = Recorder(), Recorder()
    run = trainer(tmp_path, objective=StopInStep(15), hooks=[early])
    assert run.train().stopped_by == "SIGINT"
    assert [seen[0] for seen in early.seen] == [0]
    run = trainer(tmp_path, hooks=[late])
    run.resume()
    assert run.pictures_seen == 60
    run.train()
    assert [seen[0] for seen in late.seen] == [60, 120, 160]
    assert_same_bits(learned(run), unbroken)


def test_workers_and_batches_do_not_matter(tmp_path, unbroken):
    run = trainer(tmp_path, workers=2)
    run.train()
    assert_same_bits(learned(run), unbroken)


def test_two_half_batches_equal_one_batch(tmp_path):
    whole, halves = (
        trainer(
            tmp_path / str(size),
            objective=Autoencoder(noise=0, dropout=0),
            batch_size=size,
            accumulation=8 // size,
        )
        for size in (8, 4)
    )
    assert whole.train().pictures_seen == halves.train().pictures_seen == 160
    assert whole.step == halves.step == 20
    torch.testing.assert_close(
        dict(whole.learner.parameters), dict(halves.learner.parameters), rtol=0, atol=1e-6
    )


class SometimesNan(Autoencoder):
    """Loss and gradients are NaN in the steps named."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls = bad, 0

    def loss(self, batch, generators):
        loss, scalars = super().loss(batch, generators)
        self.calls += 1
        return (loss * float("nan") if self.calls in self.bad else loss), scalars


def test_a_nan_step_is_counted_and_leaves_no_trace(tmp_path):
    run = trainer(tmp_path, objective=SometimesNan({3}), num_pictures=12, log_every=4)
    run.train()
    assert run.skipped_steps == 1
    clean = trainer(tmp_path / "clean", objective=SometimesNan({3}), num_pictures=12)
    clean.learner.step = _without_third_step(clean.learner.step)
    clean.train()
    for name, parameter in run.learner.parameters.items():
        torch.testing.assert_close(parameter, clean.learner.parameters[name], rtol=0, atol=0)
    assert "loss" not in rows(tmp_path)[-1]
    assert rows(tmp_path)[-1]["skipped_steps"] == 1


def _without_third_step(step):
    def stepped(batches, factor):
        return step(batches, factor) if batches[0]["position"][0] != 8 else ([], torch.ones(()))

    return stepped


def test_ten_nan_steps_in_a_row_end_the_run_with_the_last_good_checkpoint(tmp_path):
    run = trainer(tmp_path, objective=SometimesNan(set(range(13, 99))))
    with pytest.raises(NonFiniteError, match=r"1\d steps in a row"):
        run.train()
    (_, checkpoint) = run.checkpoints.load()
    assert checkpoint.state["pictures_seen"] == 80
    assert all(torch.isfinite(t).all() for t in checkpoint.model.values())


def test_nine_nan_steps_in_a_row_do_not(tmp_path):
    run = trainer(tmp_path, objective=SometimesNan(set(range(13, 22))))
    run.train()
    assert run.skipped_steps == 9


def test_non_finite_weights_are_refused_by_name(tmp_path):
    class Breaks(Recorder):
        def __call__(self, pictures_seen, run_dir, modules):
            if pictures_seen == 60:
                raise RuntimeError("hook broke")
            return {}

    run = trainer(tmp_path, hooks=[Breaks()])
    with pytest.raises(RuntimeError, match="hook broke"):
        run.train()
    assert run.checkpoints.load()[1].state["pictures_seen"] == 60  # saved on the way out
    with torch.no_grad():
        run.learner.parameters["decode.bias"][1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"model tensor 'decode\.bias'"):
        run.checkpoints.save(run.learner.checkpoint({}), pictures_seen=61)


def test_time_budget_ends_the_run_with_a_finished_decay(tmp_path, monkeypatch):
    ticks = itertools.count(step=0.001)  # every look at the clock takes a millisecond
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    options = {"num_pictures": 10**9, "max_seconds": 2.0, "log_every": 4, "checkpoint_every": 10**6}
    run = trainer(tmp_path, **options)
    result = run.train()
    assert 2.0 <= result.seconds < 2.1
    learning_rates = [row["learning_rate"] for row in rows(tmp_path)]
    assert max(learning_rates) == 1e-2
    assert learning_rates[-1] < 5e-4
    again = trainer(tmp_path, **options)
    again.resume()
    assert again.train().pictures_seen == result.pictures_seen  # the budget is spent


def test_changed_settings_are_refused_by_name(tmp_path):
    trainer(tmp_path, num_pictures=8).train()
    run = trainer(tmp_path, identity={"model": {"channels": 16}, "data": "fingerprint"})
    with pytest.raises(CheckpointError, match=r"model\.channels: 8 -> 16") as error:
        run.resume()
    assert "data" not in str(error.value)


def test_another_model_is_refused_by_name(tmp_path):
    trainer(tmp_path, num_pictures=8).train()
    other = Autoencoder()
    other.decode = nn.Conv2d(8, 3, 1)
    with pytest.raises(CheckpointError, match=r"decode\.weight: \[3, 8, 3, 3, .* -> \[3, 8, 1"):
        trainer(tmp_path, objective=other).resume()


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    trainer(tmp_path, num_pictures=8).train()
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(tmp_path).train()


def test_errors_of_the_data_reach_the_caller_and_what_was_learned_is_saved(tmp_path):
    class Broken(FlippingPictures):
        def augment(self, index, generator):
            if index == 5:
                raise OSError("cannot read picture 5")
            return super().augment(index, generator)

    run = trainer(tmp_path, dataset=Broken())
    with pytest.raises(OSError, match="cannot read picture 5"):
        run.train()
    assert run.step == 0 or run.checkpoints.load()[1].state["step"] == run.step


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_pictures", 0, "num_pictures must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive"),
        ("muon_learning_rate", 0.0, "muon_learning_rate must be positive"),
        ("muon_modules", ["denoise"], "muon_modules must name modules"),
        ("decay_fraction", 1.5, r"decay_fraction must be in \[0, 1\]"),
        ("max_seconds", -1.0, "max_seconds must be positive"),
        ("gradient_clip", float("nan"), "gradient_clip must be positive"),
        ("keep_checkpoints", 0, "must be at least 1"),
        ("ema_power", 2.0, "power <= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **{option: value})


def test_an_objective_without_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(tmp_path, objective=Autoencoder().requires_grad_(False))


def test_frozen_parameters_stay_and_are_not_saved(tmp_path):
    objective = Autoencoder()
    objective.encode.requires_grad_(False)
    before = objective.encode.weight.clone()
    run = trainer(tmp_path, objective=objective, num_pictures=8)
    run.train()
    assert torch.equal(objective.encode.weight, before)
    assert set(run.checkpoints.load()[1].model) == {"decode.weight", "decode.bias"}


def test_channels_last_weights_resume_exactly(tmp_path):
    def run(folder, **options):
        objective = Autoencoder().to(memory_format=torch.channels_last)
        return trainer(tmp_path / folder, objective=objective, **options)

    unbroken, stopped, resumed = run("a"), run("b", hooks=[StopAfter(52)]), run("b")
    unbroken.train()
    stopped.train()
    resumed.resume()
    resumed.train()
    assert_same_bits(learned(resumed), learned(unbroken))


def test_bfloat16_is_for_the_forward_pass_only(tmp_path):
    dtypes = []

    class Watching(Autoencoder):
        def loss(self, batch, generators):
            dtypes.append(self.encode(batch["image"].float()).dtype)
            return super().loss(batch, generators)

    run = trainer(tmp_path, objective=Watching(), precision="bfloat16", num_pictures=8)
    run.train()
    assert set(dtypes) == {torch.bfloat16}
    assert all(t.dtype == torch.float32 for t in learned(run).values())


def test_auto_precision_asks_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not uses_bfloat16("auto", cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert uses_bfloat16("auto", cpu)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert not uses_bfloat16("auto", cpu)
    assert not uses_bfloat16("auto", torch.device("meta"))
