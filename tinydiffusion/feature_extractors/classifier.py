"""A small network that learns to tell the data set's own captions apart: needs no weights."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from tinydiffusion import registry
from tinydiffusion.feature_extractors._weights import tensors_sha256
from tinydiffusion.protocols import Dataset

SIDE = 32
WIDTHS = (16, 32, 64, 128)
MAX_WORDS = 64
BATCH = 64
LEARNING_RATE = 3e-3


class Classifier:
    """Features (N, 128) of a network trained here to say which words are in a picture's caption.

    It learns the words that divide the captions best, of those that some captions have and others
    do not. The same data set, seed and machine give the same network; its SHA-256 says so. Runs
    where the pictures are.

    Args:
        dataset: The data set to learn, as a config has it: `{name: folder, path: ..., size: 32}`.
            Its pictures should be those that are compared with, or more of their kind.
        seed: Of the initial weights and the order of pictures.
        steps: Training steps of 64 pictures each, at least 1.
        max_pictures: How many of the data set's first pictures are learnt, at least 2.

    Raises:
        ValueError: an option is out of range, or the captions are all the same.
    """

    dimensions = WIDTHS[-1]

    def __init__(
        self,
        *,
        dataset: dict[str, Any],
        seed: int = 0,
        steps: int = 300,
        max_pictures: int = 4096,
    ) -> None:
        if steps < 1 or max_pictures < 2:
            raise ValueError(
                f"steps >= 1 and max_pictures >= 2 are needed, got {steps=}, {max_pictures=}"
            )
        source = registry.create("dataset", **dataset)
        images, captions = _read(source, max_pictures)
        self.words = _telling_words(captions)
        has_word = [[word in _words(caption) for word in self.words] for caption in captions]
        self.num_pictures, self.seed, self.steps = len(images), seed, steps
        self.network, self.loss = _train(images, torch.tensor(has_word).float(), seed, steps)
        self.sha256 = tensors_sha256(self.network.state_dict())

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Compute the input of the last layer, which is the features."""
        trunk = self.network[0].to(images.device)
        return trunk(_scaled(images))

    def spec(self) -> dict[str, Any]:
        """Return what makes a number comparable."""
        return {
            "name": "classifier",
            "weights_sha256": self.sha256,
            "verified": True,
            "resize": f"area average to {SIDE} x {SIDE}",
            "antialias": True,
            "normalise": "x / 127.5 - 1",
            "dtype": "float32",
            "trained_on": self.num_pictures,
            "words": self.words,
            "seed": self.seed,
            "steps": self.steps,
            "loss": self.loss,
        }


def _read(dataset: Dataset, limit: int) -> tuple[UInt8[Tensor, "N 3 H W"], list[str]]:
    """Read the first pictures at the network's size, each with its captions as one text."""
    examples = [dataset[i] for i in range(min(limit, len(dataset)))]
    captions = [
        e["caption"] if isinstance(e["caption"], str) else " ".join(e["caption"]) for e in examples
    ]
    return torch.stack([_small(e["image"]) for e in examples]), captions


def _small(image: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 SIDE SIDE"]:
    return adaptive_avg_pool2d(image.float(), SIDE).round().byte()


def _scaled(images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 SIDE SIDE"]:
    return adaptive_avg_pool2d(images.float(), SIDE) / 127.5 - 1


def _words(caption: str) -> set[str]:
    return set(re.findall(r"\w+", caption.lower()))


def _telling_words(captions: Sequence[str]) -> list[str]:
    """Choose the words nearest to being in half of the captions, nearest first, then by letters."""
    counts = Counter(word for caption in captions for word in _words(caption))
    n = len(captions)
    telling = [word for word, count in counts.items() if count < n]
    if not telling:
        raise ValueError(
            "the classifier needs captions that differ; every caption has the same words"
        )
    return sorted(telling, key=lambda word: (-counts[word] * (n - counts[word]), word))[:MAX_WORDS]


def _new_network(num_words: int) -> nn.Sequential:
    """Make a network of four strided convolutions, a mean over the picture, and a linear layer.

    Its output is one number per word.
    """
    layers: list[nn.Module] = []
    for width_in, width in pairwise((3, *WIDTHS)):
        convolution = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        layers += [convolution, nn.GroupNorm(4, width), nn.SiLU()]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(trunk, nn.Linear(WIDTHS[-1], num_words))


def _train(
    images: UInt8[Tensor, "N 3 H W"], labels: Float[Tensor, "N words"], seed: int, steps: int
) -> tuple[nn.Sequential, float]:
    """Train a network; return it with its mean loss over the last tenth of the steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _new_network(labels.shape[1])
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    with torch.enable_grad():
        for _ in range(steps):
            some = torch.randint(len(images), (BATCH,), generator=order)
            loss = binary_cross_entropy_with_logits(network(_scaled(images[some])), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return network.eval().requires_grad_(False), sum(last) / len(last)


PLUGIN = Classifier
