"""Proves Muon equal to torch's, its matrices orthogonal, and its momentum part of a resume."""

import pytest
import torch
from torch import nn
from training_toys import Autoencoder, assert_same_bits, learned, trainer

import tinydiffusion.training.optimizers.muon as muon_module
from tinydiffusion.layers import precision
from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.training.checkpoints.folder import CheckpointError
from tinydiffusion.training.optimizers.muon import GuardedMuon, orthogonalised
from tinydiffusion.training.parallel.replicated import Replicated

GO = torch.zeros(())


def layers():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(6, 6)])


def weights(module):
    return {n: p for n, p in module.named_parameters() if p.ndim == 2}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_equals_torchs_muon(monkeypatch):
    monkeypatch.setattr(muon_module, "_fastest_dtype", lambda _: torch.bfloat16)  # as torch's is
    ours, reference = layers(), layers()
    muon = GuardedMuon(weights(ours), Replicated(ours, ALONE), momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.Muon(weights(reference).values(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for seed in range(5):
        for module in (ours, reference):
            generator = torch.Generator().manual_seed(seed)
            for parameter in weights(module).values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.guarded_step(0.05, GO)
        torchs.step()
    for mine, theirs in zip(weights(ours).values(), weights(reference).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)  # bfloat16, summed otherwise
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def as_matrix(kernel):
    """Rows of output channels; the order of the columns does not matter to what is orthogonal."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_moves_as_the_matrix_of_its_output_channels(memory_format):
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(27, 4, bias=False)
    convolution.to(memory_format=memory_format)
    linear.weight.data = as_matrix(convolution.weight.detach()).clone()
    gradient = torch.randn(4, 3, 3, 3)
    linear.weight.grad = as_matrix(gradient).clone()
    convolution.weight.grad = gradient
    for module in (convolution, linear):
        matrices = dict(module.named_parameters())
        muon = GuardedMuon(matrices, Replicated(module, ALONE), weight_decay=0.1)
        muon.guarded_step(0.1, GO)
    torch.testing.assert_close(as_matrix(convolution.weight), linear.weight, rtol=0, atol=0)
    assert convolution.weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_singular_values_end_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalised(matrices))
    assert singular.min() > 0.3
    assert singular.max() < 1.3


def test_directions_stay():
    """U S V' becomes U S' V': the singular vectors are those of the gradient."""
    u, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    v, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    matrix = (u * torch.linspace(0.2, 1, 8)) @ v
    turned = u.T @ orthogonalised(matrix[None])[0] @ v.T
    assert (turned - turned.diagonal().diag()).abs().max() < 0.05


def test_bfloat16_is_for_devices_that_multiply_it(monkeypatch):
    """Others emulate it number by number: training was four times slower on such a CPU."""
    seen = []
    monkeypatch.setattr(muon_module, "orthogonalised", lambda x: seen.append(x.dtype) or x)
    for multiplies, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda answer=multiplies: answer)
        module = nn.Linear(4, 4, bias=False)
        module.weight.grad = torch.ones(4, 4)
        muon = GuardedMuon(weights(module), Replicated(module, ALONE), weight_decay=0.0)
        muon.guarded_step(0.1, GO)
        assert seen.pop() == dtype


def test_the_number_format_hardly_matters():
    matrices = torch.randn((3, 16, 32), generator=torch.Generator().manual_seed(0))
    coarse, fine = orthogonalised(matrices.bfloat16()).float(), orthogonalised(matrices)
    assert (coarse - fine).norm() < 0.02 * fine.norm()


def test_a_zero_gradient_moves_nothing():
    assert not orthogonalised(torch.zeros(1, 4, 6)).any()


def test_a_matrix_without_a_gradient_stays():
    module = layers()
    muon = GuardedMuon(weights(module), Replicated(module, ALONE), weight_decay=0.1)
    for parameter in weights(module).values():
        parameter.grad = torch.ones_like(parameter)
    muon.guarded_step(0.1, GO)  # now there is momentum
    module[0].weight.grad = None
    before = {n: p.detach().clone() for n, p in weights(module).items()}
    muon.guarded_step(0.1, GO)
    stayed = [n for n, p in weights(module).items() if torch.equal(before[n], p)]
    assert stayed == ["0.weight"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_called_off_changes_no_bit(bad):
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(8, 4), nn.Conv2d(3, 4, 3)])
    matrices = {n: p for n, p in module.named_parameters() if p.ndim >= 2}
    muon = GuardedMuon(matrices, Replicated(module, ALONE), weight_decay=0.1)
    for parameter in matrices.values():
        parameter.grad = torch.randn_like(parameter)
    muon.guarded_step(0.1, GO)  # now there is momentum
    before = {n: t.detach().clone() for n, t in {**matrices, **muon.named_state()}.items()}
    for parameter in matrices.values():
        parameter.grad = torch.full_like(parameter, bad)
    muon.guarded_step(0.1, torch.ones(()))
    for name, tensor in {**matrices, **muon.named_state()}.items():
        assert torch.equal(tensor, before[name]), name


class Mixing(Autoencoder):
    """An autoencoder and a matrix that learns to turn rows around."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.mix.weight)

    def loss(self, batch, generators):
        loss, scalars = super().loss(batch, generators)
        x = batch["image"].float() / 127.5 - 1
        return loss + (self.mix(x) - x.flip(-1)).square().mean(), scalars


def test_momentum_resumes_exactly(tmp_path):
    def run():
        return trainer(tmp_path, objective=Mixing(), muon_modules=["mix"])

    unbroken, resumed = run(), run()
    unbroken.train()
    first = resumed.checkpoints.list()[0]
    resumed.resume(first)
    assert 0 < resumed.pictures_seen < 160
    resumed.train()
    assert "optimizer/mix.weight/momentum" in learned(resumed)
    assert_same_bits(learned(resumed), learned(unbroken))


@pytest.mark.parametrize(("before", "after"), [(["mix"], []), ([], ["mix"])])
def test_another_optimizer_is_refused(tmp_path, before, after):
    trainer(tmp_path, objective=Mixing(), muon_modules=before).train()
    with pytest.raises(CheckpointError, match="muon_modules"):
        trainer(tmp_path, objective=Mixing(), muon_modules=after).resume()
