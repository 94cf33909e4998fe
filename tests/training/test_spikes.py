"""A lasting rise of the loss is a spike, scatter is none; a rollback passes over its pictures."""

import json
import random

import pytest
from training_toys import Autoencoder, assert_same_bits, learned, trainer

from tinydiffusion.runtime.errors import RunError
from tinydiffusion.training.log.spikes import IN_A_ROW, SpikeDetector
from tinydiffusion.training.trainer import MAX_ROLLBACKS


def usual(count=100, seed=0):
    generator = random.Random(seed)
    return [1 + 0.2 * generator.gauss(0, 1) for _ in range(count)]


def found(losses):
    detector = SpikeDetector()
    return [i for i, loss in enumerate(losses) if detector.add(loss)]


def test_scatter_falling_and_single_outliers_are_no_spikes():
    assert found(usual(2000)) == []
    assert found([10 * 0.99**i + loss for i, loss in enumerate(usual(1000))]) == []
    assert found([loss * (30 if i % 40 == 0 else 1) for i, loss in enumerate(usual(1000))]) == []
    assert found([1.0] * 60 + [1.4] * 60) == []  # constant losses have no scatter at all


def test_a_lasting_rise_is_found_after_a_few_steps_and_reported_once():
    assert found([*usual(100), *(5 * loss for loss in usual(200, seed=1))]) == [99 + IN_A_ROW]


def test_nothing_is_a_spike_before_enough_is_known():
    assert found([*usual(20), *(5 * loss for loss in usual(20))]) == []


def test_the_state_goes_on():
    losses = [*usual(100), 9.0, 9.0, 9.0, 9.0, 9.0]
    first, second = SpikeDetector(), SpikeDetector()
    for loss in losses[:103]:
        first.add(loss)
    second.load(json.loads(json.dumps(first.state())))
    assert [second.add(loss) for loss in losses[103:]] == [False, True]


class Spiking(Autoencoder):
    """Its loss is a hundred times as large for the pictures at some positions."""

    def __init__(self, bad):
        super().__init__(dropout=0)
        self.bad = bad

    def loss(self, batch, generators):
        loss, scalars = super().loss(batch, generators)
        bad = batch["position"][0] in self.bad
        return (loss * 100 if bad else loss), scalars


def spiking_trainer(folder, positions, **options):
    defaults = {"num_pictures": 600, "learning_rate": 1e-4, "checkpoint_every": 200}
    return trainer(folder, objective=Spiking(positions), **{**defaults, **options})


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_spike_is_counted_and_reported(tmp_path):
    run = spiking_trainer(tmp_path, range(440, 464))
    with pytest.warns(UserWarning, match="the loss left its usual range before picture 464"):
        run.train()
    assert run.loss_spikes == 1
    assert rows(tmp_path)[-1]["loss_spikes"] == 1


def test_rollback_goes_back_and_passes_over_the_pictures(tmp_path):
    run = spiking_trainer(tmp_path, range(440, 464), rollback_on_spike=True)
    with pytest.warns(UserWarning, match="usual range"):
        run.train()
    assert (run.pictures_seen, run.rollbacks, run.loss_spikes) == (600, 1, 1)
    assert run.data_offset == 64  # from the spike's row at 464 back to the checkpoint at 400
    logged = rows(tmp_path)
    losses = [row["loss"] for row in logged if "loss" in row]
    assert max(losses) < 10 * min(losses)  # the spike's rows are gone
    positions = [row["pictures_seen"] for row in logged if "loss" in row]
    assert positions == sorted(set(positions))


def test_a_rolled_back_run_resumes_exactly(tmp_path):
    def run(folder, **options):
        options = {"rollback_on_spike": True, "decay_fraction": 0.0, **options}
        return spiking_trainer(tmp_path / folder, range(440, 464), **options)

    whole, first, second = run("whole"), run("parts", num_pictures=500), run("parts")
    with pytest.warns(UserWarning, match="usual range"):
        whole.train()
    with pytest.warns(UserWarning, match="usual range"):
        first.train()
    second.resume()
    assert (second.data_offset, second.rollbacks) == (64, 1)
    second.train()
    assert_same_bits(learned(second), learned(whole))


def test_the_beginning_of_a_spike_is_nothing_to_go_back_to(tmp_path):
    run = spiking_trainer(tmp_path, range(392, 416), rollback_on_spike=True)
    with pytest.warns(UserWarning, match="usual range"):
        run.train()
    assert (run.pictures_seen, run.rollbacks) == (600, 1)
    assert run.data_offset == 416 - 200  # not to the checkpoint that was due at 400


def test_too_many_rollbacks_end_the_run(tmp_path):
    run = spiking_trainer(tmp_path, range(440, 10_000), rollback_on_spike=True)
    with (
        pytest.warns(UserWarning, match="usual range"),
        pytest.raises(RunError, match=f"again after {MAX_ROLLBACKS} rollbacks"),
    ):
        run.train()
    assert run.checkpoints.load()[1].state["pictures_seen"] == 400
