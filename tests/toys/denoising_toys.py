"""A network that remembers what it was asked, captions that are their length, and a batch."""

import torch
from torch import nn

from tinydiffusion.abilities import Previewing
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.schedule import make_schedule
from tinydiffusion.objectives.denoising import DenoisingObjective
from tinydiffusion.protocols import TextStates

BATCH = 16


class Recorder(nn.Module):
    """A network that answers `gain * x_t + text` and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, sample, timesteps, text):
        self.x_t, self.timesteps, self.text = sample, timesteps, text
        return self.gain * sample + text.pooled.mean(dim=1).view(-1, 1, 1, 1)


class Guesser(Recorder, Previewing):
    """A recorder whose preview is 2 x 2 pixels of the caption's length."""

    def preview(self, text):
        return text.pooled[:, :3, None, None].expand(-1, -1, 2, 2)


class Length(nn.Module):
    """A text encoder whose states are the caption's length times a weight."""

    hidden_size = pooled_size = 4
    max_length = 2

    def __init__(self, frozen=False):
        super().__init__()
        self.frozen = frozen
        self.weight = nn.Parameter(torch.ones(4) / 50, requires_grad=not frozen)
        self.encoded = []

    @classmethod
    def from_captions(cls, captions, **options):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def encode(self, captions):
        self.encoded.append(list(captions))
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        pooled = lengths[:, None] * self.weight
        mask = torch.ones(len(captions), 2, dtype=torch.bool)
        return TextStates(pooled[:, None].expand(-1, 2, -1), mask, pooled)

    def tokenize(self, captions):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def forward(self, tokens):
        raise AssertionError("an objective asks a text encoder for encode() only")

    def config(self):
        return {}


def make(schedule="linear", prediction_type="epsilon", frozen=False, network=Recorder, **options):
    denoiser = Denoiser(network(), make_schedule(schedule), prediction_type=prediction_type)
    return DenoisingObjective(denoiser=denoiser, text_encoder=Length(frozen), **options)


def batch(size=BATCH):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator)
    captions = [f"caption {i}" for i in range(size)]
    ids = [str(i) for i in range(size)]
    return {"image": image, "caption": captions, "id": ids, "position": list(range(size))}


def generators(seed=0, size=BATCH):
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(size)]
