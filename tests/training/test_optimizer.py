"""The optimizer is torch's AdamW and Muon; a step can be called off; state survives by name."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.training.optimizers.optimizer import Optimizer
from tinydiffusion.training.parallel.replicated import Replicated

OPTIONS = {"learning_rate": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.5}
BOTH = {**OPTIONS, "muon_modules": [""], "muon_learning_rate": 0.05}


def optimizer_of(module, **options):
    return Optimizer(module, Replicated(module, ALONE), **options)


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


@pytest.mark.parametrize("fused", [True, False])
def test_equals_adamw_with_decay_on_matrices_only(fused):
    ours, reference = linear(), linear()
    optimizer = optimizer_of(ours, **OPTIONS)
    groups = [
        {"params": [reference.weight], "weight_decay": 0.5},
        {"params": [reference.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), fused=fused)
    for seed in range(3):
        set_gradients(ours, seed)
        set_gradients(reference, seed)
        optimizer.guarded_step(1.0, torch.zeros(()))
        adamw.step()
    tolerance = {"rtol": 0, "atol": 0} if fused else {}
    for name, parameter in ours.named_parameters():
        theirs = reference.get_parameter(name)
        torch.testing.assert_close(parameter, theirs, **tolerance)
        for key, value in adamw.state[theirs].items():
            mine = optimizer.named_state()[f"{name}/{key}"]
            torch.testing.assert_close(mine, value, **tolerance)


def test_a_step_imports_no_compiler():
    """torch.optim would: two seconds at the start of every training."""
    program = (
        "import sys, torch\n"
        "from tinydiffusion.runtime.processes import ALONE\n"
        "from tinydiffusion.training.optimizers.optimizer import Optimizer\n"
        "from tinydiffusion.training.parallel.replicated import Replicated\n"
        "module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))\n"
        "optimizer = Optimizer(module, Replicated(module, ALONE), learning_rate=0.1,\n"
        "    betas=(0.9, 0.9), weight_decay=0.1, muon_modules=['0'])\n"
        "module(torch.ones(1, 2)).sum().backward()\n"
        "optimizer.guarded_step(1.0, torch.zeros(()))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("options", [OPTIONS, BOTH])
def test_a_step_called_off_changes_nothing(options):
    module = linear()
    optimizer = optimizer_of(module, **options)
    set_gradients(module, 0)
    optimizer.guarded_step(1.0, torch.zeros(()))
    before = [p.clone() for p in module.parameters()]
    state = {name: t.clone() for name, t in optimizer.named_state().items()}
    module.weight.grad.fill_(float("nan"))
    optimizer.guarded_step(1.0, torch.ones(()))
    for old, new in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, new)
    for name, tensor in optimizer.named_state().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("options", [OPTIONS, BOTH])
def test_state_goes_over_by_name(options):
    first, second = linear(), linear()
    old, new = optimizer_of(first, **options), optimizer_of(second, **options)
    set_gradients(first, 0)
    old.guarded_step(1.0, torch.zeros(()))
    second.load_state_dict(first.state_dict())
    new.load_named_state(old.named_state())
    adamw = ("step", "exp_avg", "exp_avg_sq")
    of_weight = ("momentum",) if options is BOTH else adamw
    expected = {f"weight/{key}" for key in of_weight} | {f"bias/{key}" for key in adamw}
    assert set(new.named_state()) == expected
    for module, optimizer in ((first, old), (second, new)):
        set_gradients(module, 1)
        optimizer.guarded_step(1.0, torch.zeros(()))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_module_of_vectors_alone_can_be_trained():
    module = nn.LayerNorm(4)
    optimizer = optimizer_of(module, **OPTIONS)
    set_gradients(module, 0)
    optimizer.guarded_step(1.0, torch.zeros(()))
    assert not torch.equal(module.bias, torch.zeros(4))


def test_muon_takes_the_weights_of_linear_layers_and_convolutions_alone():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Conv2d(4, 2, 3))
    state = optimizer_of(module, **BOTH).named_state()
    # AdamW makes its state at the first step
    assert set(state) == {"1.weight/momentum", "2.weight/momentum"}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = optimizer_of(module, **BOTH)
    set_gradients(module, 0)
    optimizer.guarded_step(1.0, torch.zeros(()))
    assert all(not torch.equal(before[n], p) for n, p in module.named_parameters())
    assert sorted(optimizer.named_state())[:2] == ["0.weight/exp_avg", "0.weight/exp_avg_sq"]


def test_a_module_of_one_matrix_can_be_trained_by_muon():
    module = nn.Linear(4, 4, bias=False)
    before = module.weight.detach().clone()
    optimizer = optimizer_of(module, **BOTH)
    set_gradients(module, 0)
    optimizer.guarded_step(1.0, torch.zeros(()))
    assert not torch.equal(module.weight, before)


def test_muon_trains_the_named_modules_alone():
    module = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4)), "b": nn.Linear(4, 4)})
    for names, expected in ((["a"], {"a.0.weight"}), (["a.0", "b"], {"a.0.weight", "b.weight"})):
        state = optimizer_of(module, **OPTIONS, muon_modules=names, muon_learning_rate=0.1)
        assert set(state.named_state()) == {f"{name}/momentum" for name in expected}


def test_a_module_without_a_layer_for_muon_is_named():
    frozen = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Embedding(2, 2)})
    frozen["a"].requires_grad_(False)
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"'{name}', which holds no linear layer or conv"):
            optimizer_of(frozen, **OPTIONS, muon_modules=[name])


def test_an_unknown_module_is_named_with_those_there_are():
    module = nn.ModuleDict({"network": nn.Linear(4, 4), "text_encoder": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match=r"\['network', 'text_encoder'\], got 'text'"):
        optimizer_of(module, **OPTIONS, muon_modules=["text"])
