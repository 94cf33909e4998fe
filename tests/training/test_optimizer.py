"""The optimizer is torch's AdamW; a step can be called off; its state survives by name."""

import torch
from torch import nn

from tinydiffusion.training.optimizer import GuardedAdamW

OPTIONS = {"learning_rate": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.5}


def linear():
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).view(2, 3))
        module.bias.fill_(1.0)
    return module


def set_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equals_adamw_with_decay_on_matrices_only():
    ours, reference = linear(), linear()
    optimizer = GuardedAdamW(ours, **OPTIONS)
    groups = [
        {"params": [reference.weight], "weight_decay": 0.5},
        {"params": [reference.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    for seed in range(3):
        set_gradients(ours, seed)
        set_gradients(reference, seed)
        optimizer.guarded_step(0.1, torch.zeros(()))
        adamw.step()
    torch.testing.assert_close(ours.weight, reference.weight)
    torch.testing.assert_close(ours.bias, reference.bias)


def test_a_step_called_off_changes_nothing():
    module = linear()
    optimizer = GuardedAdamW(module, **OPTIONS)
    set_gradients(module, 0)
    optimizer.guarded_step(0.1, torch.zeros(()))
    before = [p.clone() for p in module.parameters()]
    state = {name: t.clone() for name, t in optimizer.named_state().items()}
    module.weight.grad.fill_(float("nan"))
    optimizer.guarded_step(0.1, torch.ones(()))
    for old, new in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, new)
    for name, tensor in optimizer.named_state().items():
        assert torch.equal(tensor, state[name])


def test_state_goes_over_by_name():
    first, second = linear(), linear()
    old, new = GuardedAdamW(first, **OPTIONS), GuardedAdamW(second, **OPTIONS)
    set_gradients(first, 0)
    old.guarded_step(0.1, torch.zeros(()))
    second.load_state_dict(first.state_dict())
    new.load_named_state(old.named_state())
    assert set(new.named_state()) == {
        f"{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    for module, optimizer in ((first, old), (second, new)):
        set_gradients(module, 1)
        optimizer.guarded_step(0.1, torch.zeros(()))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_module_of_vectors_alone_can_be_trained():
    module = nn.LayerNorm(4)
    optimizer = GuardedAdamW(module, **OPTIONS)
    set_gradients(module, 0)
    optimizer.guarded_step(0.1, torch.zeros(()))
    assert not torch.equal(module.bias, torch.zeros(4))
