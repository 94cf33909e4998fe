"""A network behind FixedRows sees calls of one shape, and each picture only its own inputs."""

import pytest
import torch
from torch import nn

from tinydiffusion.abilities import TextFirst
from tinydiffusion.diffusion.fixed_rows import FixedRows
from tinydiffusion.protocols import TextStates


class Recorder(nn.Module):
    """Adds up everything that a row is given; remembers the shapes of its calls."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, sample, timesteps, text):
        self.shapes.append([tuple(x.shape) for x in (sample, timesteps, *text[:3])])
        states = text.encoder_hidden_states * text.mask.unsqueeze(-1)
        row = timesteps + states.sum((1, 2)) + text.pooled.sum(1)
        return sample + row.view(-1, 1, 1, 1)


def inputs(batch_size):
    generator = torch.Generator().manual_seed(batch_size)
    draw = lambda *shape: torch.randn(batch_size, *shape, generator=generator)  # noqa: E731
    text = TextStates(draw(5, 6), draw(5) > 0, draw(7))
    return draw(3, 4, 4), draw(), text


def shapes(*rows):
    return [[(n, 3, 4, 4), (n,), (n, 5, 6), (n, 5), (n, 7)] for n in rows]


@pytest.mark.parametrize(
    ("batch_size", "first", "later"),
    [
        (1, [4], [4]),
        (3, [4], [4]),
        (4, [4], [4]),
        (5, [4, 4, 8], [8]),
        (8, [4, 4, 8], [8]),
        (11, [4, 4, 4, 8, 4], [8, 4]),
        (16, [4, 4, 4, 4, 8, 8], [8, 8]),
    ],
)
def test_output_is_the_networks_and_calls_have_one_shape_or_twice_that(batch_size, first, later):
    recorder = Recorder()
    network = FixedRows(recorder, rows=4)
    sample, timesteps, text = inputs(batch_size)
    expected = Recorder()(sample, timesteps, text)
    for rows in (first, later):
        recorder.shapes.clear()
        output = network(sample, timesteps, text)
        assert recorder.shapes == shapes(*rows)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


class Summing(Recorder):
    """The last bits depend on how many rows a call has."""

    def forward(self, sample, timesteps, text):
        return super().forward(sample, timesteps, text) + 1e-6 * len(sample)


def test_calls_of_twice_as_many_rows_are_not_made_where_a_bit_differs():
    network = FixedRows(Summing(), rows=4)
    sample, timesteps, text = inputs(8)
    outputs = [network(sample, timesteps, text) for _ in range(3)]
    assert network.network.shapes == shapes(4, 4, 8, 4, 4, 4, 4)
    apart = [
        network(sample[i : i + 4], timesteps[i : i + 4], text.rows(slice(i, i + 4))) for i in (0, 4)
    ]
    for output in outputs:
        assert torch.equal(output, torch.cat(apart))


def test_every_shape_of_picture_is_tried_for_itself():
    network = FixedRows(Recorder(), rows=4)
    for size in (4, 6):
        _, timesteps, text = inputs(8)
        network(torch.zeros(8, 3, size, size), timesteps, text)
    assert [sample[0] for sample, *_ in network.network.shapes] == [4, 4, 8] * 2
    assert network.same == {torch.Size((3, 4, 4)): True, torch.Size((3, 6, 6)): True}


class Remembering(Recorder, TextFirst):
    """Counts how often it is asked for the texts of a call."""

    def with_text(self, text):
        self.texts = [*getattr(self, "texts", []), len(text.pooled)]
        return lambda sample, timesteps: self(sample, timesteps, text)


def test_a_text_is_split_once_for_all_calls():
    network = Remembering()
    sample, timesteps, text = inputs(11)
    predict = FixedRows(network, rows=4).with_text(text)
    for shift in (0, 1):
        output = predict(sample + shift, timesteps)
        expected = Recorder()(sample + shift, timesteps, text)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert network.texts == [4, 4, 4, 8, 4]
    assert network.shapes == shapes(4, 4, 4, 8, 4, 8, 4)


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
        parts = zip(*(x.split(size) for x in (sample, timesteps, *text[:3])), strict=True)
        apart = torch.cat([network(x, t, TextStates(*states)) for x, t, *states in parts])
        assert torch.equal(apart, together)
