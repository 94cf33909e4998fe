"""A run that is continued ends in the same bits as one that never stopped, and logs the same rows.

Rows T1 and T18 to T21 of the fault catalogue, for real objectives; test_trainer.py has the toys.
"""

import json
import os
import shutil
import sys
from functools import cache, partial

import pytest
import torch
from disk_shim import Disk, Strike, in_child, moments
from test_trainer import Recorder, StopAfter
from training_toys import Autoencoder, assert_same_bits, learned, trainer

from tinydiffusion import config as config_file
from tinydiffusion import registry
from tinydiffusion.abilities import Stateful
from tinydiffusion.build import build_dataset, build_objective, takes_teacher
from tinydiffusion.datasets.shards import ShardsDataset
from tinydiffusion.packing.pack import pack
from tinydiffusion.survey import survey
from tinydiffusion.training.checkpoints.folder import CheckpointError, CheckpointFolder
from tinydiffusion.training.data_order import epoch_permutation

TIMES = ("seconds", "pictures_per_second", "data_wait")
SMALL = {
    "dataset": {"name": "scenes", "size": 16, "num_scenes": 10},
    "text_encoder": {"name": "clip", "width": 8, "layers": 1, "heads": 2},
    "network": {
        "name": "unet", "channels": [8], "head_dim": 8, "attention_levels": [0],
        "layers_per_block": 1, "patch_size": 4, "preview_size": 4, "dropout": 0.1,
    },
}  # fmt: skip
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums over threads depend on their number, and a forked child has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def scenes():
    return build_dataset(SMALL["dataset"])


def real(run_dir, objective="denoising", **options):
    """A trainer of 6 steps of 4 pictures with a real objective."""
    captions = survey(scenes())[0]
    config = config_file.from_dict({**SMALL, "objective": {"name": objective}})
    start = None
    if takes_teacher(config):
        config.objective.update(num_inference_steps=2, spacing="trailing", sampler="ddpm")
        first = build_objective(config_file.from_dict(SMALL), captions)
        start = (first.denoiser.network, first.text_encoder)
    defaults = {"num_pictures": 24, "checkpoint_every": 8, "log_every": 4, "keep_checkpoints": 9}
    return trainer(
        run_dir,
        objective=build_objective(config, captions, start=start),
        dataset=scenes(),
        **{**defaults, **options},
    )


def finish(run) -> None:
    """What the same command does: go on where something is there, else begin."""
    if run.checkpoints.list():
        run.resume()
    run.train()


def rows(run):
    lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def state(run):
    _, checkpoint = run.checkpoints.load()
    return {k: v for k, v in checkpoint.state.items() if k not in TIMES}


def assert_same_run(run, unbroken):
    assert_same_bits(learned(run), learned(unbroken))
    assert state(run) == state(unbroken)
    assert rows(run) == rows(unbroken)


def killed_after(run_dir, unbroken, number) -> None:
    """What a SIGKILL some time after the checkpoint of this number leaves of an unbroken run."""
    shutil.copytree(unbroken.run_dir, run_dir)
    for later in CheckpointFolder(run_dir / "checkpoints").list()[number:]:
        shutil.rmtree(later)


# ---- every objective, every precision --------------------------------------------------------


@pytest.mark.parametrize("objective", registry.names("objective"))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulation": 2, "batch_size": 2, "muon_modules": [""]}],
    ids=["AdamW", "Muon and accumulation"],
)
def test_three_parts_equal_one(tmp_path, objective, precision, options):
    """Row T20: killed twice; rows T1 and T21: weights, average, optimizer, state and log rows."""

    def run(name):
        return real(tmp_path / name, objective, precision=precision, **options)

    unbroken = run("unbroken")
    finish(unbroken)
    killed_after(tmp_path / "second", unbroken, 1)
    second = run("second")
    finish(second)
    killed_after(tmp_path / "third", second, 2)
    third = run("third")
    assert third.resume() == []
    assert third.pictures_seen == 16
    third.train()
    assert_same_run(third, unbroken)
    assert len(rows(third)) == 6


def test_what_dropout_and_noise_do_is_in_the_comparison(tmp_path):
    """The runs above are equal for a reason: another seed gives other bits."""
    one, other = (
        real(tmp_path / "one", num_pictures=8),
        real(tmp_path / "2", num_pictures=8, seed=1),
    )
    finish(one)
    finish(other)
    assert any(not torch.equal(t, learned(other)[name]) for name, t in learned(one).items())


# ---- workers, batches, epochs ----------------------------------------------------------------


class Seen(Autoencoder):
    """Notes the pictures that it is trained on."""

    def __init__(self):
        super().__init__()
        self.ids = []

    def loss(self, batch, generators):
        self.ids += [int(i) for i in batch["id"]]
        return super().loss(batch, generators)


def order(num_pictures, length=10) -> list[int]:
    """The first pictures in the endless concatenation of shuffled epochs."""
    epochs = range(-(-num_pictures // length))
    return torch.cat([epoch_permutation(3, e, length) for e in epochs])[:num_pictures].tolist()


@pytest.mark.parametrize("counts", [(0, 2), (2, 1)], ids=str)
def test_another_number_of_workers_goes_on_exactly(tmp_path, counts):
    """Row T18."""
    unbroken = real(tmp_path / "unbroken")
    finish(unbroken)
    first, second = counts
    stopped = real(tmp_path / "run", workers=first, hooks=[StopAfter(12)])
    stopped.train()
    resumed = real(tmp_path / "run", workers=second)
    finish(resumed)
    assert_same_bits(learned(resumed), learned(unbroken))
    assert rows(resumed)[-1] == rows(unbroken)[-1]


@pytest.mark.parametrize("stop", [20, 40, 12, 8], ids="after {} pictures".format)
def test_no_picture_is_lost_or_doubled_around_the_end_of_an_epoch(tmp_path, stop):
    """Row T19: epochs of 10 pictures in batches of 4, stopped at an end, past one and before."""
    parts = []
    for hooks in ([StopAfter(stop)], []):
        parts.append(Seen())
        run = trainer(tmp_path, objective=parts[-1], num_pictures=60, hooks=hooks)
        finish(run)
    assert [len(part.ids) for part in parts] == [stop, 60 - stop]
    seen = parts[0].ids + parts[1].ids
    assert seen == order(60)
    assert all(sorted(seen[i : i + 10]) == list(range(10)) for i in range(0, 60, 10))


@pytest.mark.parametrize(
    "change", [{"batch_size": 10}, {"batch_size": 1}, {"accumulation": 5}], ids=str
)
def test_another_batch_size_is_refused_or_goes_on_in_the_same_order(tmp_path, change):
    """Row T18: the identity names the batch size, as the command's does."""

    def run(objective, batch_size=4, accumulation=1, **options):
        identity = {"training": {"batch_size": batch_size * accumulation}}
        sizes = {"batch_size": batch_size, "accumulation": accumulation}
        return trainer(tmp_path, objective=objective, identity=identity, **sizes, **options)

    first, second = Seen(), Seen()
    run(first, hooks=[StopAfter(20)]).train()
    with pytest.raises(ValueError, match=r"training\.batch_size: 4 -> \d+"):
        run(second, **change).resume()
    resumed = run(second, **change)
    assert resumed.resume(allow_change=["training.batch_size"])
    resumed.train()
    assert first.ids == order(20)
    assert second.ids == order(160)[20:]


# ---- the log ---------------------------------------------------------------------------------


def with_hook(run_dir, every=8, keep=1, **options):
    sizes = {"num_pictures": 16, "checkpoint_every": 8, "log_every": 4, "keep_checkpoints": keep}
    return trainer(run_dir, hooks=[Recorder(every)], **sizes, **options)


def changes_what_a_kill_leaves(operation) -> bool:
    """Syncing and closing do not, and unfinished checkpoints are test_checkpoint_faults.py's."""
    inside = operation.path.startswith(("checkpoints/.tmp", "checkpoints/.trash"))
    reads = operation.kind == "open" and not operation.writing
    return not (inside or reads or operation.kind in ("fsync", "close"))


@pytest.fixture(scope="module")
def died_everywhere(tmp_path_factory):
    """An unbroken run, and one per file operation that died there and was started again."""
    path = tmp_path_factory.mktemp("runs")
    unbroken = with_hook(path / "unbroken")
    with Disk(path / "unbroken") as disk:
        unbroken.train()

    def die_at(folder, number, moment):
        with Disk(folder, Strike(number, moment, lambda: os._exit(9))):
            with_hook(folder).train()

    runs = []
    for number, moment in moments(disk.operations):
        if changes_what_a_kill_leaves(disk.operations[number]):
            folder = path / f"{number} {moment}"
            assert in_child(partial(die_at, folder, number, moment)) == 9
            runs.append(with_hook(folder))
            with Disk(folder):
                finish(runs[-1])
    assert len(runs) > 20
    return unbroken, runs


@linux
def test_a_death_at_any_operation_of_a_run_changes_nothing_in_the_end(died_everywhere):
    """Row T1: the log, the record of the data, the names of the checkpoints."""
    unbroken, runs = died_everywhere
    for run in runs:
        assert_same_run(run, unbroken)


@linux
def test_a_death_at_any_operation_of_a_run_leaves_nothing_to_clean_up(died_everywhere):
    unbroken, runs = died_everywhere
    names = {str(file.relative_to(unbroken.run_dir)) for file in unbroken.run_dir.rglob("*")}
    for run in runs:
        left = {str(file.relative_to(run.run_dir)) for file in run.run_dir.rglob("*")}
        assert left == names


@linux
def test_a_death_after_the_last_hook_does_not_double_its_row(tmp_path):
    """The hook runs at the end although its turn has not come, after the checkpoint was written."""
    unbroken = with_hook(tmp_path / "unbroken", every=1000)
    unbroken.train()

    def die():
        with_hook(tmp_path / "run", every=1000, trackers=[DiesAtTheLastHook()]).train()

    assert in_child(die) == 9
    run = with_hook(tmp_path / "run", every=1000)
    finish(run)
    assert rows(run) == rows(unbroken)


class DiesAtTheLastHook:
    """A tracker that ends the process when the hook's last row is in the log."""

    def start(self, run_dir, pictures_seen):
        pass

    def log(self, row):
        if "hook/value" in row and row["pictures_seen"] == 16:
            os._exit(9)

    def close(self):
        pass


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 64 + b"\n", b'{"pictures_seen": 4, "lo\n', b"[]\n", b"7\n", b"{}\n",
        b"\xff\xfe\n",
    ],
    ids=["zeros", "cut", "list", "number", "empty", "no text"],
)  # fmt: skip
def test_a_log_that_a_power_loss_has_damaged_does_not_stop_the_run(tmp_path, damage):
    unbroken = with_hook(tmp_path / "unbroken", keep=9)
    unbroken.train()
    killed_after(tmp_path / "run", unbroken, 1)
    with (tmp_path / "run/metrics.jsonl").open("ab") as log:
        log.write(damage)
    run = with_hook(tmp_path / "run", keep=9)
    finish(run)
    assert_same_run(run, unbroken)


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_in_the_middle_of_a_tar_shard(tmp_path, workers):
    """Shards of 10, windows of 8, batches of 4: the stop falls into a window and a shard."""
    section = {"name": "scenes", "size": 16, "num_scenes": 27}
    assert pack(section, tmp_path / "set", picture_format="png", shard_size=10, workers=1) == 0

    def run(folder, **options):
        dataset = ShardsDataset(path=tmp_path / "set", size=16, window=8)
        return trainer(tmp_path / folder, dataset=dataset, workers=workers, **options)

    unbroken = run("unbroken")
    unbroken.train()
    assert run("stopped", hooks=[StopAfter(52)]).train().pictures_seen == 52
    resumed = run("stopped")
    resumed.resume()
    assert resumed.train().pictures_seen == 160
    assert_same_bits(learned(resumed), learned(unbroken))


class Remembering(Autoencoder, Stateful):
    """Keeps a codebook by moving average, and counts what it has seen in a controller."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.weight = torch.ones(())

    def loss(self, batch, generators):
        loss, scalars = super().loss(batch, generators)
        mean = (batch["image"].float() / 255).mean(dim=(0, 2, 3))
        self.codebook.lerp_(mean, 0.1)
        self.scratch.add_(1)
        self.weight = self.weight * (1 + self.codebook.mean() / 100)
        return loss * self.weight + (loss * self.codebook.mean()).detach(), scalars

    def state(self):
        return {"weight": self.weight}

    def load_state(self, state):
        self.weight = state["weight"].clone()


def test_buffers_and_state_of_an_objective_resume_exactly(tmp_path):
    def run():
        return trainer(tmp_path, objective=Remembering())

    unbroken, resumed = run(), run()
    unbroken.train()
    resumed.resume(resumed.checkpoints.list()[0])
    assert 0 < resumed.pictures_seen < 160
    resumed.train()
    ours, theirs = learned(resumed), learned(unbroken)
    assert {"objective/codebook", "objective/state/weight"} <= ours.keys()
    assert "objective/scratch" not in ours
    assert_same_bits(ours, theirs)


def test_an_objective_that_remembers_something_else_is_refused(tmp_path):
    trainer(tmp_path, objective=Remembering()).train()
    with pytest.raises(CheckpointError, match=r"of another objective:\n  .*codebook"):
        trainer(tmp_path, objective=Autoencoder()).resume()
