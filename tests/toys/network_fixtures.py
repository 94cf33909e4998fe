"""Inputs of a network, and the filling of its zeros."""

import pytest
import torch

from tinydiffusion.protocols import TextStates


class Inputs:
    """Random pictures, timesteps and texts of different lengths."""

    def __call__(self, batch, text_dim, pooled_dim, length, *, shape=(3, 16, 16)):
        generator = torch.Generator().manual_seed(0)

        def normal(*size):
            return torch.randn(size, generator=generator)

        mask = torch.arange(length) < 2 + torch.arange(batch)[:, None] % (length - 2)
        text = TextStates(normal(batch, length, text_dim), mask, normal(batch, pooled_dim))
        return normal(batch, *shape), torch.linspace(3, 900, batch), text

    @staticmethod
    def without_zeros(network):
        """The network with random numbers where parameters begin at zero."""
        generator = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        return network


@pytest.fixture
def text_inputs():
    return Inputs()
