"""The average equals its formula."""

import pytest
import torch
from torch import nn

from tinydiffusion.training.ema import EMA, ema_decay, trained_parameters


def test_warm_up_reaches_the_published_values():
    assert ema_decay(0) == 0
    assert ema_decay(9_999) == pytest.approx(0.999)  # power 3/4
    assert ema_decay(999_999, power=2 / 3, max_decay=0.99999) == pytest.approx(0.9999)
    assert ema_decay(10**9) == 0.9999


def test_average_equals_the_recursion_by_hand():
    module = nn.Linear(2, 2)
    ema = EMA(trained_parameters(module), max_decay=0.6)
    average = module.weight.detach().double()
    for step in range(6):
        with torch.no_grad():
            module.weight.normal_()
        ema.update()
        decay = min(0.6, 1 - (1 + step) ** -0.75)
        average = decay * average + (1 - decay) * module.weight.detach().double()
    torch.testing.assert_close(ema.weights["weight"].double(), average, rtol=1e-6, atol=1e-6)
    assert ema.num_updates == 6


def test_power_one_is_the_plain_mean():
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(trained_parameters(module), power=1.0)
    for value in (1.0, 2.0, 6.0):
        nn.init.constant_(module.weight, value)
        ema.update()
    torch.testing.assert_close(ema.weights["weight"], torch.tensor([[3.0]]))


def test_first_update_copies_the_weights():
    module = nn.Linear(3, 3)
    ema = EMA(trained_parameters(module))
    nn.init.normal_(module.weight)
    ema.update()
    assert torch.equal(ema.weights["weight"], module.weight)


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert list(EMA(trained_parameters(module)).weights) == ["weight"]


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"got 1\.0"):
        EMA(trained_parameters(nn.Linear(1, 1)), max_decay=1.0)
