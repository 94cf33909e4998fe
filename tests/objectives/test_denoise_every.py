"""Proves that pictures between those that are denoised teach the preview, and nothing else."""

import pytest
import torch
from denoising_toys import BATCH, Guesser, batch, generators, make

from tinydiffusion.networks.unet import UNet


def test_one_picture_in_so_many_is_denoised_and_all_are_previewed():
    """The same pictures, levels and noise as when all are denoised."""
    seen, parts = {}, {}
    for every in (1, 4):
        objective = make(network=Guesser, denoise_every=every)
        _, parts[every] = objective.loss(batch(), generators())
        seen[every] = objective.denoiser.network
    places = [i for i, position in enumerate(batch()["position"]) if position % 4 == 0]
    assert 0 < len(places) < BATCH
    assert torch.equal(seen[4].x_t, seen[1].x_t[places])
    assert torch.equal(seen[4].timesteps, seen[1].timesteps[places])
    assert torch.equal(seen[4].text.pooled, seen[1].text.pooled[places])
    assert torch.equal(parts[4]["preview_loss"], parts[1]["preview_loss"])


@pytest.mark.parametrize("options", [{}, {"network": Guesser, "preview_weight": 0.0}])
def test_pictures_that_teach_nothing_are_an_error(options):
    with pytest.raises(ValueError, match="denoise_every 2 needs a network with a preview"):
        make(denoise_every=2, **options)


def test_a_part_without_a_picture_to_denoise_has_zero_gradients():
    """It must not be the one process that others wait for."""
    network = UNet(text_dim=4, pooled_dim=4, channels=[32], head_dim=32, attention_levels=[])
    objective = make(network=lambda: network, denoise_every=4)
    part = {key: values[1:2] for key, values in batch().items()}
    loss, parts = objective.loss(part, generators()[1:2])
    loss.backward()
    assert parts["denoising_loss"] == 0
    assert network.conv_in.weight.grad is not None
    assert not network.conv_in.weight.grad.any()
