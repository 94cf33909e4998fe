"""Proves that the bytes of living tensors are counted exactly: once each, until they are freed."""

import torch

from tinydiffusion.runtime.live_bytes import LiveBytes

CPU = torch.device("cpu")
KB = 250  # numbers of float32


def peak(compute, without=()):
    live = LiveBytes(CPU)
    with live:
        kept = compute()
    return live.peak(without=[kept[i] for i in without])


def test_what_is_freed_makes_room():
    def one_after_the_other():
        for _ in range(5):
            torch.zeros(KB)
        return []

    def together():
        return [torch.zeros(KB) for _ in range(5)]

    assert peak(one_after_the_other) == 1000
    assert peak(together) == 5000
    assert peak(together, without=[0, 4]) == 3000


def test_views_and_what_was_there_before_are_not_counted():
    before = torch.zeros(4 * KB)

    def compute():
        new = torch.ones(2 * KB)
        before.add_(1)
        return [new.view(2, KB)[0], new[KB:], before.view(2, -1), before[:KB].mul_(2)]

    assert peak(compute) == 2000


def test_a_chain_of_layers_holds_what_its_backward_pass_needs():
    """y = relu(x w), three times: products and outputs of (10, 25), gradients of (25, 25)."""
    weights = [torch.randn(25, 25, requires_grad=True) for _ in range(3)]
    x = torch.randn(10, 25)

    def forward():
        y = x
        for weight in weights:
            y = (y @ weight).relu()
        return [y]

    def step():
        forward()[0].sum().backward()
        return [weight.grad for weight in weights]

    # three outputs are kept, and a product is freed once its output is there
    assert peak(forward) == 4 * 1000
    assert peak(step, without=[0, 1, 2]) < peak(step)
    assert all(weight.grad is not None for weight in weights)


def test_other_devices_are_not_counted():
    live = LiveBytes(torch.device("cuda"))
    with live:
        kept = torch.zeros(KB)
    assert live.peak(without=[kept]) == 0
