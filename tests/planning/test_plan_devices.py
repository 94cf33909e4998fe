"""Proves the arithmetic of N devices and of a run's timetable."""

import pytest
import torch
from torch import nn

from tinydiffusion.networks.unet import UNet
from tinydiffusion.planning.devices import (
    BANDWIDTH,
    largest_block,
    share,
)
from tinydiffusion.planning.quantity import Quantity
from tinydiffusion.planning.step import Memory
from tinydiffusion.planning.time import Call, Timetable
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.micro_batches import advice
from tinydiffusion.training.trainer import Trainer

MEMORY = Memory(weights=110, gradients=100, optimizer=200, ema=100, activations=800, measured=2000)
ONCE = {"last grid": Quantity(7, "seconds", "estimated")}


def timetable(**changes):
    """10 steps of 8 pictures, a second each; 2 calls of 3 seconds between them, 7 seconds after."""
    call = Call("sample grids", every=80, seconds=3)
    return Timetable(1.0, 8, 80, None, [call], ONCE)._replace(**changes)


def of(devices, times=None, accumulation=1):
    return share(
        devices,
        times=times or timetable(),
        memory=MEMORY,
        accumulation=accumulation,
        block_bytes=5,
    )


# ---- devices ---------------------------------------------------------------------------------


def test_one_device_is_as_it_is():
    alone = of(1)
    assert alone.sent_bytes == 0
    assert alone.step_seconds == alone.compute_seconds == 1
    assert alone.ddp_bytes == alone.fsdp_bytes == MEMORY.total == 1310
    assert alone.run_seconds == timetable().total_seconds == 10 + 2 * 3 + 7


def test_ddp_holds_all_state_and_a_share_of_the_activations():
    assert of(4).ddp_bytes == 110 + 100 + 200 + 100 + 800 / 4


def test_fsdp_shares_what_is_trained_and_the_main_process_keeps_the_model():
    assert of(4).fsdp_bytes == 500 / 4 + 10 + 800 / 4 + 110 + 2 * 5


def test_a_ring_sends_every_gradient_almost_twice():
    assert of(2).sent_bytes == 100
    assert of(4).sent_bytes == 2 * 3 / 4 * 100
    assert of(4).step_seconds == 1 / 4 + 150 / BANDWIDTH


def test_only_the_steps_are_shared():
    assert of(4).run_seconds == pytest.approx(10 / 4 + 2 * 3 + 7)


def test_where_time_is_limited_more_devices_see_more():
    times = timetable(max_seconds=8.0)
    assert of(1, times).pictures_seen == 80 * 8 // 16
    assert of(4, times).pictures_seen == 80 * 8 * 4 // (4 * 6 + 10)
    assert of(8, times).pictures_seen == 80


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "devices", "told"),
    [
        (64, 1, 8, ""),
        (64, 4, 16, ""),
        (64, 1, 3, "set training.batch_size to 63 or 66"),
        (2, 1, 4, "set training.batch_size to 4"),
        (64, 8, 16, ""),
        (96, 32, 5, "set training.batch_size to 70 or 105"),
        (60, 5, 8, "set training.batch_size to 56 or 64"),
    ],
)
def test_a_batch_that_cannot_be_shared_has_advice(batch_size, accumulation, devices, told):
    assert advice(batch_size, accumulation, devices) == told
    pictures = of(devices, timetable(batch_size=batch_size), accumulation).pictures_at_once
    assert pictures.is_integer() == (told == "")
    assert pictures <= batch_size / accumulation


def test_processes_take_over_the_parts_that_save_memory():
    """Four parts of 16 on one device: of 64 pictures never more than 16 at a time on any."""
    memory = [of(n, timetable(batch_size=64), 4).ddp_bytes for n in (1, 2, 4, 8)]
    assert memory == [1310, 1310, 1310, 1310 - 400]


def test_the_largest_block_is_a_member_of_a_module_list():
    network = UNet(text_dim=24, pooled_dim=16, channels=(32, 64), layers_per_block=1)
    sizes = [sum(p.nbytes for p in block.parameters()) for block in [*network.down, *network.up]]
    assert largest_block(network) == max(sizes)
    assert largest_block(network.conv_in) == 0


# ---- the timetable ---------------------------------------------------------------------------


def test_a_timetable_adds_up():
    rows = timetable().rows()
    assert rows["training"].value == 10
    assert rows["sample grids"].value == 2 * 3
    assert rows["last grid"].value == 7
    assert rows["total"].value == 23
    assert rows["one step"].how == "measured"


class Scale(nn.Module):
    """An objective of one number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, batch, generators):
        return (self.scale * batch["image"].float()).mean(), {}


class Counting:
    """A hook that counts its calls."""

    def __init__(self, every):
        self.every, self.calls = every, 0

    def __call__(self, pictures_seen, run_dir, modules):
        self.calls += 1
        return {}


class Grey:
    """A data set of one grey."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.full((3, 2, 2), 9, dtype=torch.uint8)
        return {"image": image, "caption": "grey", "id": str(index)}


@pytest.mark.parametrize(
    ("num_pictures", "every"),
    [(64, 32), (64, 24), (60, 32), (8, 100), (64, 3), (40, 40), (41, 40), (1, 1)],
)
def test_hooks_and_checkpoints_come_as_often_as_in_a_run(tmp_path, num_pictures, every):
    hook = Counting(every)
    trainer = Trainer(
        Learner(Scale()), Batches(Grey(), 8), run_dir=tmp_path, num_pictures=num_pictures,
        identity={}, hooks=[hook], checkpoint_every=every, keep_checkpoints=99,
    )  # fmt: skip
    trainer.train()
    times = timetable(num_pictures=num_pictures)
    assert times.num_steps == trainer.step
    assert times.num_calls(Call("hook", every, 0)) == hook.calls
    saved = len(trainer.checkpoints.list())
    assert times.num_calls(Call("checkpoints", every, 0, at_start=False)) == saved


def test_time_that_suffices_cuts_nothing():
    assert timetable(max_seconds=16.0).pictures_seen == 80
    assert timetable(max_seconds=15.9).pictures_seen == 79


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (987_000, "parameters", "987 k"),
        (2.54e9, "FLOP", "2.54 GFLOP"),
        (1.7e12, "FLOP/s", "1.7 TFLOP/s"),
        (0.136, "seconds", "136 ms"),
        (100, "seconds", "100.0 s"),
        (600, "seconds", "10.0 min"),
        (86400 * 3, "seconds", "3.0 days"),
        (18_160_000, "bytes", "18.2 MB"),
        (512, "bytes", "512 B"),
        (12316, "pictures", "12316"),
    ],
)
def test_numbers_in_units_that_people_read(value, unit, shown):
    assert str(Quantity(value, unit, "counted")) == shown
