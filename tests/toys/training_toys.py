"""A data set, an objective and a trainer small enough for tests; no diffusion."""

import inspect
from pathlib import Path

import torch
from torch import nn

from tinydiffusion.abilities import Augmented
from tinydiffusion.training.checkpoints.folder import PARTS
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner
from tinydiffusion.training.trainer import Trainer


class RandomPictures:
    """Random pictures; the caption list names its picture."""

    def __init__(self, length=10, size=4):
        generator = torch.Generator().manual_seed(7)
        shape = (length, 3, size, size)
        self.images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        captions = [f"{index} a", f"{index} b", f"{index} c"]
        return {"image": self.images[index], "caption": captions, "id": str(index)}


class FlippingPictures(RandomPictures, Augmented):
    """The same, half of them turned around at every visit."""

    def augment(self, index, generator):
        example = self[index]
        if torch.rand((), generator=generator) < 0.5:
            example["image"] = example["image"].flip(-1)
        return example


class Autoencoder(nn.Module):
    """Denoises pictures with two convolutions; uses both the generator and dropout."""

    def __init__(self, noise=0.1, dropout=0.1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encode = nn.Conv2d(3, 8, 3, padding=1)
            self.decode = nn.Conv2d(8, 3, 3, padding=1)
        self.noise = noise
        self.dropout = nn.Dropout(dropout)

    def loss(self, batch, generators):
        x = batch["image"].float() / 127.5 - 1
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
        noisy = x + self.noise * noise
        y = self.decode(self.dropout(torch.relu(self.encode(noisy))))
        loss = nn.functional.mse_loss(y, x)
        return loss, {"mse": loss, "pictures": float(len(x))}


OF_LEARNER = inspect.signature(Learner).parameters.keys()


def trainer(run_dir: Path, *, objective=None, dataset=None, batch_size=4, workers=0, **options):
    """A trainer of 40 steps of 4 pictures, unless told otherwise."""
    defaults = {
        "num_pictures": 160,
        "identity": {"model": {"channels": 8}, "data": "fingerprint"},
        "learning_rate": 1e-2,
        "warmup_pictures": 16,
        "precision": "float32",
        "checkpoint_every": 40,
        "log_every": 16,
    }
    options = {**defaults, **options}
    own = {name: options.pop(name) for name in OF_LEARNER & options.keys()}
    learner = Learner(Autoencoder() if objective is None else objective, **own)
    share = (learner.processes.rank, learner.processes.count)
    return Trainer(
        learner,
        Batches(dataset or FlippingPictures(), batch_size, 3, num_workers=workers, share=share),
        run_dir=run_dir,
        **options,
    )


def learned(trainer):
    """Every tensor of a run: weights, average, optimizer state, what the objective remembers."""
    checkpoint = trainer.learner.checkpoint({})
    parts = {part: getattr(checkpoint, part) for part in PARTS}
    return {f"{part}/{n}": t.clone() for part, tensors in parts.items() for n, t in tensors.items()}


def assert_same_bits(left, right):
    """Equal names and equal bits."""
    assert left.keys() == right.keys()
    assert left
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)
