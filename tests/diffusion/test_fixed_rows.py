"""A network behind FixedRows sees calls of one shape, and each picture only its own inputs."""

import pytest
import torch
from torch import nn

from tinydiffusion.diffusion.fixed_rows import FixedRows
from tinydiffusion.protocols import TextStates


class Recorder(nn.Module):
    """Adds up everything that a row is given; remembers the shapes of its calls."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, sample, timesteps, text):
        self.shapes.append([tuple(x.shape) for x in (sample, timesteps, *text)])
        states = text.encoder_hidden_states * text.mask.unsqueeze(-1)
        row = timesteps + states.sum((1, 2)) + text.pooled.sum(1)
        return sample + row.view(-1, 1, 1, 1)


def inputs(batch_size):
    generator = torch.Generator().manual_seed(batch_size)
    draw = lambda *shape: torch.randn(batch_size, *shape, generator=generator)  # noqa: E731
    text = TextStates(draw(5, 6), draw(5) > 0, draw(7))
    return draw(3, 4, 4), draw(), text


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 8, 11])
def test_output_is_the_networks_and_every_call_has_the_same_shape(batch_size):
    recorder = Recorder()
    sample, timesteps, text = inputs(batch_size)
    output = FixedRows(recorder, rows=4)(sample, timesteps, text)

    assert recorder.shapes == [[(4, 3, 4, 4), (4,), (4, 5, 6), (4, 5), (4, 7)]] * (
        -(-batch_size // 4)
    )
    torch.testing.assert_close(output, Recorder()(sample, timesteps, text), rtol=0, atol=0)


class Convolution(nn.Module):
    """A layer whose kernels sum in an order that depends on the number of rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.linear = nn.Linear(64 * 16, 48)

    def forward(self, sample, timesteps, text):
        hidden = self.conv(sample).flatten(1) * timesteps[:, None]
        return self.linear(hidden).view(-1, 3, 4, 4)


@torch.no_grad()
def test_a_picture_is_the_same_to_the_bit_in_any_batch():
    network = FixedRows(Convolution())
    sample, timesteps, text = inputs(20)
    together = network(sample, timesteps, text)
    for size in (1, 3, 8):
        parts = zip(*(x.split(size) for x in (sample, timesteps, *text)), strict=True)
        apart = torch.cat([network(x, t, TextStates(*states)) for x, t, *states in parts])
        assert torch.equal(apart, together)
